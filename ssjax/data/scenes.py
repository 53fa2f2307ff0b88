"""The scenes of the generated sample: who wants what, what happens, and its summary.

Each scene is a function of a `Dice`. It draws its slots, writes lines that alternate between
#Person1# and #Person2#, and writes the summary from the same slots. Where a speaker changes
his mind the summary follows the last value, and the form of the summary follows from what
happened in the dialogue, so that it can be learned and not only guessed.
"""

import random
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WHEN = (*DAYS, "tomorrow", "tonight")
TIMES = ("8 am", "9 am", "10 am", "11 am", "noon", "1 pm", "2 pm", "3 pm", "4 pm", "5 pm")
EVENINGS = ("6 pm", "6:30", "7 pm", "7:30", "8 pm", "8:30")
SMALL = ("two", "three", "four", "five", "six", "seven", "eight")
CITIES = (
    "London", "Paris", "Boston", "Chicago", "Berlin", "Madrid", "Tokyo", "Sydney", "Toronto",
    "Dublin", "Vienna", "Oslo", "Beijing", "Rome", "Seattle", "Denver",
)  # fmt: skip
FIRST_NAMES = (
    "Alice", "Ben", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack",
    "Karen", "Leo", "Maria", "Nick", "Olivia", "Peter", "Rachel", "Steven", "Tina", "Victor",
    "Wendy", "Adam", "Bella", "Daniel", "Fiona", "Kevin", "Laura", "Mark", "Nancy", "Oscar",
)  # fmt: skip
SURNAMES = (
    "Smith", "Brown", "Taylor", "Wilson", "Clark", "Lee", "Baker", "Green", "Young", "Hill",
    "Turner", "Parker", "Cooper", "Morgan", "Bell", "Murphy", "Ward", "Gray", "Price", "Fox",
)  # fmt: skip


class Dice:
    """Draws that depend on the seed alone: only `random()` is promised to be stable."""

    def __init__(self, seed: str):
        self._random = random.Random(seed)

    def pick(self, *items: _Item) -> _Item:
        """One of the items."""
        return items[int(self._random.random() * len(items))]

    def two(self, *items: _Item) -> tuple[_Item, _Item]:
        """Two different items."""
        first = int(self._random.random() * len(items))
        second = int(self._random.random() * (len(items) - 1))
        return items[first], items[second + (second >= first)]

    def ordered(self, *items: _Item) -> tuple[_Item, _Item]:
        """Two different items, in the order in which they are listed."""
        first, second = self.two(*range(len(items)))
        return items[min(first, second)], items[max(first, second)]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability


@dataclass(frozen=True)
class Scene:
    """One dialogue: lines[0] is said by #Person1#, lines[1] by #Person2#, and so on."""

    lines: tuple[str, ...]
    summary: str
    topic: str


def _small_talk(d: Dice, probability: float) -> tuple[str, ...]:
    """Two lines that no summary mentions, or none."""
    if not d.chance(probability):
        return ()
    return d.pick(
        ("Good morning. Terrible weather, isn't it?", "Yes, it has been raining for days."),
        ("Hello! What a lovely day.", "Hello! Yes, spring is here at last."),
        ("Hi! I haven't seen you for ages.", "Hi! I know, I have been so busy."),
        ("Nice to see you again. How is your family?", "They are well, thank you."),
        ("Good day. Please have a seat.", "Thank you. It is very warm in here."),
    )


def _person(d: Dice) -> tuple[str, str]:
    """A title with a surname, and whether "him" or "her" is meant."""
    surname = d.pick(*SURNAMES)
    return d.pick((f"Mr. {surname}", "him"), (f"Ms. {surname}", "her"))


def restaurant(d: Dice) -> Scene:
    """A table is booked, or the place is full and the caller is put on the list."""
    number = d.pick(*SMALL)
    (day, late_day), (time, late_time) = d.two(*WHEN), d.two(*EVENINGS)
    house = d.pick("Blue Garden", "Golden Fork", "Old Mill", "Red Lantern", "Sea View", "Luigi's")
    seat = d.pick("by the window", "on the terrace", "in a quiet corner", "near the fireplace")
    name = d.pick(*SURNAMES)
    lines = [
        d.pick(f"{house}. How can I help?", f"Good evening, {house}. What can I do for you?"),
        d.pick(
            f"I'd like to book a table for {number} for {day}, please.",
            f"Can I reserve a table for {number} people {seat} for {day}?",
            f"Do you have a table for {number} for {day}?",
        ),
        d.pick("Certainly. What time would you like?", "Let me check. At what time?"),
        d.pick(f"At {time}, please.", f"{time} would be best.", f"We would come at {time}."),
    ]
    full = d.chance(0.3)
    if full:
        lines += [
            d.pick(
                f"I'm sorry, we are full at {time}. Shall I put you on the waiting list?",
                f"There is nothing left at {time}. I could put you on our waiting list.",
            ),
            d.pick(f"Yes, please. My name is {name}.", f"All right, put me down as {name}."),
            d.pick("We will call you if a table gets free.", "Thank you. We will ring you."),
        ]
        summary = (
            f"{name} wants a table for {number} at {house} for {day} at {time}, but it is full, "
            "so #Person1# offers the waiting list."
        )
        return Scene(tuple(lines), summary, "restaurant booking")
    if d.chance(0.4):
        new_day = d.chance(0.5)
        change = late_day if new_day else late_time
        day, time = (late_day, time) if new_day else (day, late_time)
        lines += [
            d.pick("Fine. And your name, please?", "That is possible. What is the name?"),
            d.pick(
                f"{name}. Oh wait, could we make it {change} instead?",
                f"It's {name}. Sorry, {change} suits us better.",
            ),
            d.pick(f"No problem, I have changed it to {change}.", f"Sure, {change} it is."),
        ]
        verb = "changes the booking and takes"
    else:
        lines += [
            d.pick("Fine. And your name, please?", "That is possible. What is the name?"),
            d.pick(f"{name}. We'd love to sit {seat}.", f"It's {name}. A table {seat}, please."),
            d.pick("Done. We look forward to seeing you.", "Your table is booked. See you then."),
        ]
        summary = (
            f"#Person1# helps {name} book a table for {number} {seat} at {house} for {day} "
            f"at {time}."
        )
        return Scene(tuple(lines), summary, "restaurant booking")
    summary = f"{name} {verb} a table for {number} at {house} for {day} at {time}."
    return Scene(tuple(lines), summary, "restaurant booking")


def doctor(d: Dice) -> Scene:
    """A patient describes what hurts and gets advice, perhaps a prescription or a test."""
    patient, _ = _person(d)
    pain = d.pick(
        "a sore throat", "a headache", "a bad cough", "back pain", "a fever", "a rash",
        "a stomachache", "an earache", "a swollen ankle", "trouble sleeping",
    )  # fmt: skip
    span = d.pick("two days", "three days", "four days", "a week", "two weeks", "a month")
    medicine = d.pick("some pills", "a syrup", "an ointment", "some drops", "antibiotics")
    advice = d.pick(
        "drink more water", "stay in bed", "rest at home", "eat less salt", "avoid coffee",
        "take warm baths", "stop smoking", "exercise gently",
    )  # fmt: skip
    lines = [
        d.pick(
            f"Good morning, {patient}. What seems to be the trouble?",
            f"Come in, {patient}. What brings you here today?",
            f"Hello, {patient}. How are you feeling?",
        ),
        d.pick(
            f"I have had {pain} for {span}.",
            f"Not so good, doctor. I've got {pain}. It started {span} ago.",
            f"It's {pain}, doctor. It has been going on for {span}.",
        ),
        *d.pick(
            ("Let me take a look. Does it hurt here?", "A little, yes."),
            ("Let me examine you. Does this hurt?", "No, not at all."),
            ("I see. Any allergies?", "Not that I know of."),
            ("Have you taken anything for it?", "No, nothing so far."),
        ),
    ]
    test = d.chance(0.4)
    if test:
        kind, day = d.pick("a blood test", "an X-ray", "a scan"), d.pick(*DAYS)
        lines += [
            d.pick(
                f"I'd like you to have {kind} on {day}. Until then, {advice}.",
                f"To be safe we need {kind}. Come back on {day}, and {advice}.",
            ),
            *d.pick(
                ("Is it serious?", "Probably not, but I want to be sure."),
                ("Should I be worried?", "I don't think so. It is just a precaution."),
            ),
        ]
        ending = f"The doctor orders {kind} on {day} and advises {patient} to {advice}."
    else:
        lines += [
            d.pick(
                f"It is nothing serious. I'll give you {medicine}. And please {advice}.",
                f"Don't worry. Take {medicine} and {advice}.",
            ),
            *d.pick(
                ("How often should I use it?", "Follow the label and come back in a week."),
                ("Thank you. When will I feel better?", "Soon. Call me if it gets worse."),
            ),
        ]
        ending = f"The doctor prescribes {medicine} and advises {patient} to {advice}."
    lead = f"{patient} has had {pain} for {span}."
    return Scene(tuple(lines), f"{lead} {ending}", "see a doctor")


def luggage(d: Dice) -> Scene:
    """A bag did not arrive; it is found, or it will be traced."""
    city, other = d.two(*CITIES)
    colour = d.pick("black", "blue", "red", "green", "brown", "silver", "grey", "yellow")
    bag = d.pick("suitcase", "backpack", "travel bag", "trunk", "sports bag", "guitar case")
    mark = d.pick("a white ribbon", "a name tag", "a broken wheel", "a flag sticker", "a big lock")
    street = d.pick("Hotel Central", "the Park Hotel", "the Grand Hotel", "my office", "my flat")
    their = street.replace("my", "the")
    lines = [
        d.pick(
            f"Excuse me, my {bag} did not arrive. I came from {city}.",
            f"Hello, I just flew in from {city} and I can't find my {bag}.",
            f"I think you lost my {bag}. I was on the flight from {city}.",
        ),
        d.pick("I'm sorry to hear that. What does it look like?", "Can you describe it, please?"),
        d.pick(
            f"It is {colour}, with {mark}.",
            f"A {colour} one. It has {mark} on it.",
            f"It's a {colour} {bag} with {mark}.",
        ),
    ]
    outcome = d.pick("found", "sent", "form")
    if outcome == "found":
        lines += [
            d.pick("One moment. Yes, it is in our office.", "Good news. It is right here."),
            d.pick("What a relief! May I take it now?", "Wonderful! Can I have it?"),
            d.pick("Of course. Just show me your passport.", "Yes, sign here, please."),
        ]
        ending = f"#Person2# finds the {colour} {bag} with {mark} and gives it back."
    elif outcome == "sent":
        day = d.pick(*DAYS)
        lines += [
            d.pick(f"It was sent to {other} by mistake.", f"It seems to be in {other} now."),
            d.pick(f"Oh no! I need it at {street}.", f"Could you bring it to {street}?"),
            d.pick(f"Yes, it will be there on {day}.", f"We will deliver it on {day}. Sorry."),
        ]
        ending = f"The {colour} {bag} is in {other} and will be delivered to {their} on {day}."
    else:
        lines += [
            d.pick("We will look for it. Please fill in this form.", "Please complete this form."),
            d.pick(f"And where will you send it? I am staying at {street}.", f"I'm at {street}."),
            d.pick("We will phone you as soon as we find it.", "We will call you once we know."),
        ]
        ending = f"#Person2# asks for a form and will call about the {colour} {bag} with {mark}."
    return Scene(
        tuple(lines), f"#Person1#'s {bag} from {city} is missing. {ending}", "lost luggage"
    )


def interview(d: Dice) -> Scene:
    """An applicant answers questions and hears what happens next."""
    name, them = _person(d)
    job = d.pick(
        "sales manager", "accountant", "designer", "secretary", "teacher", "engineer", "chef",
        "editor", "translator", "receptionist", "driver", "nurse",
    )  # fmt: skip
    years = d.pick(*SMALL)
    place = d.pick("a bank", "a small school", "a hotel", "a hospital", "a magazine", "a law firm")
    skill = d.pick(
        "speaks Spanish", "works well in a team", "knows computers", "learns fast",
        "likes to travel", "writes clear reports", "stays calm under pressure",
    )  # fmt: skip
    first, rest = skill.split(" ", 1)
    spoken = f"{first[:-1]} {rest}"
    lines = [
        d.pick(
            f"Welcome, {name}. So you want to be our new {job}?",
            f"Good morning, {name}. You are here for the job as {job}, right?",
        ),
        d.pick("Yes, I am very interested in it.", "That's right. Thank you for seeing me."),
        d.pick("Tell me about your experience.", "What have you done so far?"),
        d.pick(
            f"I worked at {place} for {years} years.",
            f"I have spent {years} years at {place}.",
            f"For {years} years I was with {place}.",
        ),
        d.pick("And what is your strong point?", "Why should we choose you?"),
        d.pick(f"I {spoken}.", f"Well, I {spoken}, and I enjoy the work."),
    ]
    lead = f"{name} applies as {job}, has {years} years of experience at {place} and {skill}."
    outcome = d.pick("hired", "second", "wait")
    if outcome == "hired":
        day = d.pick(*DAYS)
        lines.append(
            d.pick(f"You are hired. Please start on {day}.", f"Great! Can you begin on {day}?")
        )
        ending = f"#Person1# hires {them} from {day}."
    elif outcome == "second":
        day = d.pick(*DAYS)
        lines.append(
            d.pick(
                f"I'd like you to meet our director on {day}.",
                f"Please come again on {day} to see the director.",
            )
        )
        ending = f"The director will see {them} on {day}."
    else:
        lines.append(
            d.pick("Thank you. We will let you know.", "Fine. You will hear from us by mail.")
        )
        ending = f"#Person1# will let {them} know."
    return Scene(tuple(lines), f"{lead} {ending}", "job interview")


def car_repair(d: Dice) -> Scene:
    """A car is brought to a garage; the price is accepted, beaten down or refused."""
    part, symptom = d.pick(
        ("brakes", "makes a noise when I stop"), ("battery", "won't start"),
        ("engine", "loses power on hills"), ("radiator", "gets too hot"),
        ("lights", "has no lights"), ("gearbox", "is hard to shift"),
        ("exhaust", "is very loud"), ("tyres", "slides in the rain"),
    )  # fmt: skip
    car = d.pick("van", "truck", "sports car", "old Ford", "Toyota", "jeep", "taxi", "minibus")
    price, low = d.pick((90, 80), (120, 100), (150, 130), (200, 180), (260, 220), (340, 300))
    day, late = d.ordered(*DAYS)
    lines = [
        *_small_talk(d, 0.25),
        d.pick("What can I do for you today?", "What's the problem?", "Do you have car trouble?"),
        d.pick(
            f"My {car} {symptom}. Could you have a look?",
            f"I'm worried. My {car} {symptom}. Can you check it?",
        ),
        d.pick(
            f"I see. It's the {part}. The repair will be {price} dollars.",
            f"I think it must be the {part}. It will cost {price} dollars.",
        ),
    ]
    # Small talk is two lines, and eight are the most.
    outcome = d.pick("plain", "refused", *(("cheaper", "later") if len(lines) == 3 else ()))
    if outcome == "refused":
        lines += [
            d.pick(f"{price} dollars? That's too much.", "That is far too expensive for me."),
            d.pick(
                f"I'm sorry, but the {part} will take me two days.",
                "Parts are dear. I can't do it for less.",
            ),
            d.pick("Then I'd rather try another garage. Goodbye.", "Thanks, I'll ask elsewhere."),
        ]
        ending = f"for {price} dollars. #Person2# finds it too expensive and leaves."
    else:
        if outcome == "cheaper":
            lines += [
                d.pick(f"That's a lot. Could you do it for {low}?", f"Would you take {low}?"),
                d.pick("Well, all right, because you are a regular.", f"OK, {low} it is, then."),
            ]
            price = low
        lines += [
            d.pick("When can I pick it up?", "How long will it take?"),
            d.pick(f"It will be ready on {day}.", f"You can have it back on {day}."),
        ]
        if outcome == "later":
            lines += [
                d.pick("I need it sooner. I work every day.", "Really? Not before that?"),
                d.pick(
                    f"I have to order parts. Actually, {late} is more likely.",
                    f"Sorry, I have to wait for parts. Better say {late}.",
                ),
            ]
            day = late
        lines.append(d.pick("Fine, see you then.", "All right, thank you."))
        if outcome == "later":
            ending = f"for {price} dollars, but because of the parts not before {day}."
        elif outcome == "cheaper":
            ending = f"for only {price} dollars. It will be ready on {day}."
        else:
            ending = f"for {price} dollars. It will be ready on {day}."
    return Scene(
        tuple(lines),
        f"#Person2#'s {car} has a problem. #Person1# offers to repair the {part} {ending}",
        "car repair",
    )


def hotel(d: Dice) -> Scene:
    """A guest checks in, or complains about the room."""
    name, _ = _person(d)
    room = d.pick("single room", "double room", "suite", "family room", "twin room")
    nights, more = d.two(*SMALL)
    price = d.pick(*range(60, 200, 10))
    extra = d.pick("breakfast", "parking", "a sea view", "a balcony", "wireless internet")
    if d.chance(0.4):
        fault, remedy = d.pick(
            ("the shower is cold", "a plumber"), ("the lamp is broken", "an electrician"),
            ("there are no towels", "the maid"), ("the window won't close", "a porter"),
            ("the television is dead", "a technician"), ("the room smells of smoke", "a cleaner"),
        )  # fmt: skip
        number = d.pick(*range(101, 120), *range(201, 220), *range(301, 320))
        wait = d.pick("five minutes", "ten minutes", "half an hour", "an hour")
        moved = d.chance(0.5)
        lines = [
            d.pick("Front desk. How may I help you?", "Reception, good evening."),
            d.pick(
                f"This is {name} in room {number}. I'm afraid {fault}.",
                f"Hello, {name} speaking, room {number}. I have a problem: {fault}.",
            ),
            d.pick(
                f"I'm terribly sorry. I'll send {remedy} in {wait}.",
                f"I apologise. You will see {remedy} in {wait}.",
            ),
        ]
        if moved:
            lines += [
                d.pick("I can't wait. I want another room.", "No, just give me another room."),
                d.pick(f"Of course, I can offer you a {room} instead.", f"We have a {room} free."),
                d.pick("Good, I'll pack my things at once.", "Fine. I'll come down for the key."),
            ]
            ending = f"#Person1# offers {remedy} but {name} prefers to move to a {room}."
        else:
            lines += [
                d.pick("That is fine. I'll be in the room.", "Good. I will wait here, then."),
                d.pick("Thank you for your patience.", "Is there anything else I can do?"),
                d.pick("No, that's all. Thank you.", "That's all. Good night."),
            ]
            ending = f"#Person1# will send {remedy} in {wait}."
        summary = f"{name} in room {number} complains that {fault}. {ending}"
        return Scene(tuple(lines), summary, "hotel complaint")
    lines = [
        d.pick("Good afternoon. Do you have a reservation?", "Welcome. Have you booked?"),
        d.pick(
            f"No. My name is {name}. I need a {room} for {nights} nights.",
            f"Not yet. I'm {name}, and I'd like a {room} for {nights} nights.",
        ),
        d.pick(f"We have one for {price} dollars a night.", f"It is {price} dollars per night."),
        d.pick(f"Does that include {extra}?", f"Is {extra} included?"),
    ]
    included = d.chance(0.5)
    lines.append(
        d.pick(f"Yes, {extra} is included.", "Yes, it is.")
        if included
        else d.pick(f"No, you pay more for {extra}.", "No, I'm afraid that is extra.")
    )
    if d.chance(0.4):
        nights = more
        lines += [
            d.pick(f"I'll take it. But make it {more} nights.", f"Good. Rather {more} nights."),
            d.pick(f"{more.capitalize()} nights. Here is your key.", "As you like. Sign here."),
        ]
    else:
        lines += [
            d.pick("I'll take it. Here is my passport.", "All right, that will do."),
            d.pick("Thank you. Here is your key.", "Enjoy your stay."),
        ]
    share = "with" if included else "without"
    summary = (
        f"{name} takes a {room} for {nights} nights at {price} dollars a night "
        f"{share} {extra} at #Person1#'s hotel."
    )
    return Scene(tuple(lines), summary, "hotel check-in")


def course(d: Dice) -> Scene:
    """A student signs up for a course, or takes another because the first is full."""
    name = d.pick(*FIRST_NAMES)
    subject, other = d.two(
        "history", "biology", "French", "chemistry", "economics", "painting", "physics",
        "music", "geography", "Chinese", "statistics", "philosophy", "drama", "law",
    )  # fmt: skip
    teacher, _ = _person(d)
    day, time = d.pick(*DAYS[:5]), d.pick(*TIMES)
    reason = d.pick("for my degree", "for my job", "just for fun", "before I go abroad")
    lines = [
        d.pick(
            f"Hello, I'm {name}. I want to sign up for the {subject} course.",
            f"Hi, my name is {name}. Can I still register for {subject}?",
        ),
        d.pick("Why do you want to take it?", "May I ask why you chose it?"),
        d.pick(f"I need it {reason}.", f"It's {reason}.", f"I'd like to do it {reason}."),
    ]
    why = reason.replace("my", "a").replace("I go", "going")
    outcome = d.pick("in", "full", "moved")
    if outcome == "full":
        lines += [
            d.pick(f"Sorry, {subject} is full. How about {other}?", f"It's full. Try {other}?"),
            d.pick(f"Hmm. Who teaches {other}?", f"Well, {other} sounds good. With whom?"),
            d.pick(f"{teacher}, every {day} at {time}.", f"It's {teacher}, on {day} at {time}."),
            d.pick("OK, put me down for it.", "Then I will take that one."),
        ]
        summary = (
            f"{name} wants to take {subject} {why}, but it is full, so {name} takes {other} "
            f"with {teacher} on {day} at {time}."
        )
    else:
        lines += [
            d.pick(
                f"There is a place left. {teacher} teaches it on {day} at {time}.",
                f"You are lucky. It's with {teacher}, every {day} at {time}.",
            ),
        ]
        if outcome == "moved":
            new = d.pick(*(slot for slot in TIMES if slot != time))
            lines += [
                d.pick(f"I work at {time}. Is there another class?", f"{time} is bad for me."),
                d.pick(f"There is one at {new}, too.", f"You could join the class at {new}."),
            ]
            time = new
        lines += [
            d.pick("Great, I'll take it.", "That's perfect for me."),
            d.pick("Please pay the fee by Friday.", "Here is your timetable. Good luck!"),
        ]
        tail = f"and chooses the class at {time}" if outcome == "moved" else f"at {time}"
        summary = f"{name} signs up for {subject} {why}, taught by {teacher} on {day} {tail}."
    return Scene(tuple(lines), summary, "course registration")


def purchase(d: Dice) -> Scene:
    """A customer brings something back: refund, exchange, or neither without the receipt."""
    item = d.pick(
        "coat", "shirt", "sweater", "toaster", "radio", "kettle", "watch", "lamp", "camera",
        "printer", "jacket", "vase", "dress", "blender", "hat", "phone", "clock", "fan",
    )  # fmt: skip
    fault = d.pick(
        "is too small", "is too big", "does not work", "has a scratch", "has a hole",
        "is the wrong colour", "makes a strange noise", "fell apart",
    )  # fmt: skip
    day = d.pick(*DAYS)
    price = d.pick(*range(15, 100, 5))
    lines = [
        d.pick("Can I help you?", "Next, please. What is it?", "Hello. What can I do for you?"),
        d.pick(
            f"I bought this {item} on {day}, but it {fault}.",
            f"I want to return this {item}. I got it on {day} and it {fault}.",
            f"This {item} {fault}. I bought it here on {day}.",
        ),
        d.pick("I'm sorry. Do you have the receipt?", "May I see the receipt, please?"),
    ]
    outcome = d.pick("none", "refund", "exchange", "voucher")
    lead = f"#Person2# wants to return a {item} bought on {day} because it {fault}."
    if outcome == "none":
        lines += [
            d.pick("No, I have lost it.", "I'm afraid I threw it away."),
            d.pick("Then I can't take it back.", "Without it I cannot give you your money."),
            d.pick("That's not fair. I will write to your manager!", "I want the manager, now!"),
        ]
        ending = "#Person1# refuses without the receipt and #Person2# gets angry."
    elif outcome == "refund":
        lines += [
            d.pick("Yes, here it is.", "Sure, here you are."),
            d.pick("Would you like another one or your money?", "Do you want a new one?"),
            d.pick("I'd rather have my money back.", "No, just the money, please."),
            d.pick(f"Fine. Here are {price} dollars.", f"OK, that makes {price} dollars."),
        ]
        ending = f"#Person1# gives back {price} dollars."
    else:
        lines += [
            d.pick("Yes, here it is.", "Sure, here you are."),
            d.pick("Would you like another one or your money?", "Do you want a new one?"),
        ]
        if outcome == "exchange":
            lines += [
                d.pick("Another one, please.", f"I'd like a new {item}, please."),
                d.pick("Here you are. Sorry again.", "Of course. This one is fine."),
            ]
            ending = "#Person1# exchanges it for a new one."
        else:
            lines += [
                d.pick("I'd like my money back.", "The money, please."),
                d.pick("We could also give you a voucher with a bonus.", "How about a voucher?"),
                d.pick("Oh, then I'll take the voucher.", "A voucher? Yes, that is even better."),
            ]
            ending = "#Person1# gives #Person2# a voucher instead of the money."
    return Scene(tuple(lines), f"{lead} {ending}", "return a purchase")


def moving(d: Dice) -> Scene:
    """Somebody moves house and asks a friend for help."""
    name, friend = d.two(*FIRST_NAMES)
    place = d.pick("a bigger flat", "a cottage", "the suburbs", "the city centre", "a new house")
    reason = d.pick(
        "the rent is too high", "the neighbours are noisy", "there is a new baby",
        "the office is far away", "the roof leaks", "there is no garden",
    )  # fmt: skip
    day, late = d.two(*DAYS)
    thing = d.pick("boxes", "van", "books", "piano", "sofa", "plants", "old fridge", "wardrobe")
    lines = [
        d.pick(
            f"Hi {friend}, guess what? I'm moving to {place}.",
            f"{friend}, I have news. I am moving to {place}!",
        ),
        d.pick(f"Really, {name}? Why is that?", f"Oh, {name}! What is wrong with your old home?"),
        d.pick(f"Well, {reason}.", f"You know, {reason}, and I've had enough."),
        d.pick("I understand. When is the big day?", "I see. When are you going?"),
        d.pick(
            f"On {day}. Could you help me with the {thing}?",
            f"It's on {day}. Do you have time to help with the {thing}?",
        ),
    ]
    lead = f"{name} is moving to {place} because {reason}."
    outcome = d.pick("yes", "no", "later")
    if outcome == "yes":
        lines.append(d.pick("Sure, count on me.", "Of course, I'd be glad to help."))
        ending = f"{friend} will help with the {thing} on {day}."
    elif outcome == "no":
        excuse = d.pick("I have to work", "I'm away", "my back hurts", "my parents visit me")
        lines.append(d.pick(f"I'm sorry, {excuse} then.", f"I wish I could, but {excuse}."))
        lines.append(d.pick("Never mind. Thanks anyway.", "That's a pity, but it's OK."))
        ending = f"{friend} cannot help with the {thing} on {day}."
    else:
        lines += [
            d.pick(f"I can't on {day}, but {late} would work.", f"Could you do it on {late}?"),
            d.pick(f"All right, {late} then.", f"Yes, I'll change it to {late}. Thanks!"),
        ]
        ending = f"They will move the {thing} on {late} instead of {day}."
    return Scene(tuple(lines), f"{lead} {ending}", "moving house")


def birthday(d: Dice) -> Scene:
    """Two people plan a birthday: where, what to give, who brings what."""
    name = d.pick(*FIRST_NAMES)
    who = d.pick("Mum", "Dad", "Grandma", "Uncle Bob", "Aunt Mary", name, name, name, name)
    place, other = d.two("the park", "the beach", "a pizzeria", "the lake", "home", "the zoo")
    gift, better = d.two(
        "a book", "a scarf", "a bicycle", "a puzzle", "concert tickets", "a puppy", "a necklace",
        "a teapot", "football boots", "a cookbook", "a painting", "headphones",
    )  # fmt: skip
    day = d.pick(*DAYS)
    food = d.pick("the cake", "the drinks", "sandwiches", "the balloons", "the salad", "ice cream")
    lines = [
        d.pick(
            f"{who}'s birthday is on {day}. What shall we do?",
            f"Don't forget, it's {who}'s birthday on {day}. Any ideas?",
        ),
        d.pick(f"Let's have a party at {place}.", f"How about a party at {place}?"),
    ]
    moved = d.chance(0.35)
    if moved:
        lines += [
            d.pick("We did that last year. I'd rather not.", "That will be too crowded."),
            d.pick(f"You're right. Then at {other}.", f"OK, let's choose {other} instead."),
        ]
        place = other
    else:
        lines += [
            *d.pick(
                ("How many people shall we invite?", "About fifteen, I think."),
                ("Nice. Whom do you want to ask?", "All our friends and the whole family."),
            ),
        ]
    lines.append(d.pick(f"Good. And {gift} as a present?", f"Fine. Shall we buy {gift}?"))
    swapped = d.chance(0.4)
    if swapped:
        lines.append(
            d.pick(
                f"No, I think {better} would be nicer.",
                f"Hmm, {who} would prefer {better}, I believe.",
            )
        )
        gift = better
    else:
        lines.append(d.pick(f"Yes, {who} will love that.", "That's a lovely idea."))
    mine = d.chance(0.5)
    lines.append(
        d.pick(f"OK. I'll bring {food}.", f"Great, and I will take care of {food}.")
        if mine
        else d.pick(f"OK. Can you bring {food}?", f"Great. Will you take care of {food}?")
    )
    if not mine:
        lines.append(d.pick("No problem.", "Sure, leave it to me."))
    bringer = "#Person1#" if mine else "#Person2#"
    decide = "finally agree on" if swapped or moved else "plan"
    summary = (
        f"#Person1# and #Person2# {decide} a party at {place} and {gift} for {who}'s birthday "
        f"on {day}. {bringer} will bring {food}."
    )
    return Scene(tuple(lines), summary, "birthday plan")


def train(d: Dice) -> Scene:
    """A traveller buys train tickets; the first train may be full."""
    city = d.pick(*CITIES)
    number = d.pick("one", *SMALL)
    (time, late), day = d.ordered(*TIMES, *EVENINGS), d.pick(*WHEN[:8])
    price = d.pick(*range(20, 95, 5))
    kind = d.pick("first class", "second class")
    back = d.chance(0.5)
    trip = "return" if back else "single"
    plural = "ticket" if number == "one" else "tickets"
    lines = [
        d.pick("Next, please. Where to?", "Good morning. Where are you going?"),
        d.pick(
            f"{number.capitalize()} {trip} {plural} to {city} for {day}, please.",
            f"To {city}. I need {number} {trip} {plural} for {day}.",
        ),
        d.pick("First class or second class?", "Which class would you like?"),
        d.pick(
            f"{kind.capitalize()}, on the train at {time}.",
            f"{kind.capitalize()}, please, at {time}.",
        ),
    ]
    full = d.chance(0.4)
    if full:
        lines += [
            d.pick(f"That train is full. The next one leaves at {late}.",
                   f"There are no seats left. I can offer you {late}."),
            d.pick("Then I'll take that one.", "I see. All right, that is fine, too."),
        ]  # fmt: skip
        time = late
    else:
        lines += [
            *d.pick(
                ("Would you like a seat by the window?", "Yes, that would be nice."),
                ("A window seat or the aisle?", "I don't mind, as long as it is quiet."),
            ),
        ]
    platform = d.pick(*range(1, 15))
    lines += [
        d.pick(
            f"That's {price} dollars. Platform {platform}.",
            f"{price} dollars, please. It leaves from platform {platform}.",
        ),
        d.pick("Here you are. Thank you.", "Can I pay by card? Thanks."),
    ]
    tail = "since the first train is full." if full else f"and pays {price} dollars."
    summary = (
        f"#Person2# buys {number} {trip} {kind} {plural} to {city} for {day} at {time} "
        f"from platform {platform} {tail}"
    )
    return Scene(tuple(lines), summary, "train tickets")


def bank_card(d: Dice) -> Scene:
    """A bank card is lost, stolen or swallowed; it is blocked and perhaps replaced."""
    name, _ = _person(d)
    how, fact = d.pick(
        ("was stolen", "Somebody stole my bank card"), ("was lost", "I lost my bank card"),
        ("broke", "My bank card broke"), ("was swallowed", "The machine kept my bank card"),
    )  # fmt: skip
    place = d.pick(
        "on the bus", "at the market", "in a taxi", "at the station", "in the cinema",
        "at the gym", "in the library", "at the airport", "on the beach", "at a café",
    )  # fmt: skip
    wait, long_wait = d.ordered("two days", "three days", "five days", "a week", "ten days")
    fee = d.pick("five", "eight", "ten", "twelve", "fifteen")
    lines = [
        d.pick("City Bank, what can I do for you?", "Thank you for calling City Bank."),
        d.pick(f"{fact} {place}.", f"Please help me. {fact} {place}!"),
        d.pick("I'll block it. Your name, please?", "Don't worry. May I have your name?"),
        d.pick(f"I am {name}.", f"{name}. That's my account."),
    ]
    outcome = d.pick("mail", "branch", "none")
    if outcome == "mail":
        lines += [
            d.pick(f"It is blocked. A new one comes by mail in {wait}.", f"Done. In {wait} you "
                   "will get a new one by mail."),
            d.pick("Does it cost anything?", "How much will that be?"),
            d.pick(f"It costs {fee} dollars.", f"There is a fee of {fee} dollars."),
        ]  # fmt: skip
        ending = f"#Person1# blocks it and mails a new one in {wait} for {fee} dollars."
    elif outcome == "branch":
        lines += [
            d.pick(f"Blocked. You will have a new one in {long_wait}.", f"In {long_wait} we will "
                   "send a new one."),
            d.pick("That is too long. Can I fetch it myself?", "I need it sooner. Please!"),
            d.pick(f"Yes, at our branch in {wait}.", f"Then come to our branch in {wait}."),
        ]  # fmt: skip
        ending = f"#Person1# blocks it and {name} will fetch a new one at the branch in {wait}."
    else:
        lines += [
            d.pick("It is blocked now. Shall we send a new one?", "Done. Do you need a new one?"),
            d.pick("No, please close the account.", "No, I want to leave your bank."),
            d.pick("As you wish. I will send you the papers.", "I'm sorry. I'll mail the forms."),
        ]
        ending = f"#Person1# blocks it, but {name} wants to close the account."
    return Scene(tuple(lines), f"{name}'s bank card {how} {place}. {ending}", "bank card")


def library(d: Dice) -> Scene:
    """A reader borrows, renews or brings back a book."""
    name = d.pick(*FIRST_NAMES)
    subject = d.pick(
        "whales", "volcanoes", "cooking", "chess", "castles", "robots", "birds", "knitting",
        "pirates", "ancient Egypt", "space travel", "wild flowers", "jazz", "dinosaurs",
    )  # fmt: skip
    span, longer = d.ordered("one week", "ten days", "two weeks", "three weeks", "a month")
    floor = d.pick("first", "second", "third", "fourth")
    use = d.pick("an essay", "a talk", "my sister", "the holidays", "my exam", "a class project")
    use_told = use.replace("my", "a" if use == "my sister" else "an")
    lines = [
        d.pick(
            f"Hello, I'm {name}. I am looking for a book about {subject}.",
            f"Excuse me, do you have books about {subject}? My name is {name}.",
        ),
        d.pick("Is it for school?", "What do you need it for?"),
        d.pick(f"It's for {use}.", f"I need it for {use}."),
    ]
    outcome = d.pick("here", "longer", "out")
    if outcome == "out":
        day = d.pick(*DAYS)
        lines += [
            d.pick(f"Someone has borrowed it. It is due on {day}.", f"It is out until {day}."),
            d.pick("Could you keep it for me?", "Can I reserve it, please?"),
            d.pick("Yes, I'll send you a message.", "Of course. I will write your name down."),
            d.pick("That's very kind of you.", "Thank you so much. Bye."),
        ]
        summary = (
            f"{name} needs a book about {subject} for {use_told}. It is out until {day}, "
            f"so #Person2# will reserve it."
        )
    else:
        lines += [
            d.pick(f"You will find it on the {floor} floor.", f"Look on the {floor} floor."),
            d.pick("How long may I keep it?", "Thanks. And when is it due?"),
            d.pick(f"You can have it for {span}.", f"In {span}."),
        ]
        if outcome == "longer":
            lines += [
                d.pick(f"Is {longer} possible?", f"That's not right for me. Could I say {longer}?"),
                d.pick(f"Well, {longer} is fine.", f"For you, yes, {longer}."),
            ]
            span = longer
            tail = f"and may keep it for {span} after asking #Person2#."
        else:
            lines.append(d.pick("Perfect, thank you.", "That is enough. Thanks a lot."))
            tail = f"and may keep it for {span}."
        summary = f"{name} finds a book about {subject} for {use_told} on the {floor} floor {tail}"
    return Scene(tuple(lines), summary, "library")


def gym(d: Dice) -> Scene:
    """Somebody wants to join a sports club."""
    name = d.pick(*FIRST_NAMES)
    sport, other = d.two(
        "swimming", "yoga", "boxing", "tennis", "dancing", "climbing", "rowing", "judo", "golf",
        "badminton", "cycling", "fencing",
    )  # fmt: skip
    goal = d.pick(
        "lose weight", "get stronger", "meet people", "sleep better", "run a marathon",
        "relax after work", "keep fit",
    )  # fmt: skip
    price = d.pick(*range(20, 80, 5))
    coach = d.pick(*SURNAMES)
    day = d.pick(*DAYS)
    lines = [
        *d.pick(
            (
                "Welcome to the sports club. Are you a member?",
                f"Not yet. I'm {name}, and I'd like to try {sport}.",
            ),
            (
                "Hi. Is it your first visit?",
                f"Yes, my name is {name}. I am interested in {sport}.",
            ),
        ),
        d.pick("Great! What is your goal?", "Why do you want to start?"),
        d.pick(f"I want to {goal}.", f"My plan is to {goal}.", f"I hope to {goal}."),
    ]
    outcome = d.pick("join", "other", "think")
    lead = f"{name} wants to {goal}"
    if outcome == "join":
        lines += [
            d.pick(
                f"It's {price} dollars a month. Coach {coach} starts on {day}.",
                f"You pay {price} dollars a month and begin with Coach {coach} on {day}.",
            ),
            d.pick("OK, I'll join.", "Where do I sign?"),
        ]
        summary = (
            f"{lead} and joins #Person1#'s {sport} class for {price} dollars a month. "
            f"Coach {coach} starts on {day}."
        )
    elif outcome == "other":
        lines += [
            d.pick(f"Then {other} would be better for you.", f"Have you thought of {other}?"),
            d.pick("Isn't that hard to learn?", "I have never done that before."),
            d.pick(
                f"Coach {coach} will help you on {day}.", f"Try it with Coach {coach} on {day}."
            ),
            d.pick("OK, let's do that.", "Why not? See you then."),
        ]
        summary = (
            f"{lead} and asks about {sport}, but #Person1# recommends {other}. {name} will try "
            f"it with Coach {coach} on {day}."
        )
    else:
        lines += [
            d.pick(f"It costs {price} dollars a month.", f"That makes {price} dollars a month."),
            d.pick("That is a lot. I need to think.", "Oh! I'll talk to my family first."),
            d.pick("Of course. Here is our leaflet.", "Take your time. We are open every day."),
        ]
        summary = (
            f"{lead} and asks about {sport} at #Person1#'s club, but it costs {price} dollars a "
            "month and needs some thought."
        )
    return Scene(tuple(lines), summary, "join a club")


def flat(d: Dice) -> Scene:
    """A tenant looks at a flat, takes it, declines it or asks for less."""
    name, _ = _person(d)
    rooms = d.pick("two", "three", "four", "five")
    rent, less = d.pick((500, 450), (600, 550), (700, 650), (800, 720), (900, 840), (1100, 1000))
    plus = d.pick("a big kitchen", "a balcony", "new carpets", "a cellar", "a garage", "two baths")
    street = d.pick(
        "Oak Street", "Park Road", "River Lane", "King Street", "Mill Road", "Station Road",
        "Church Lane", "Garden Street", "Bridge Road", "Forest Drive",
    )  # fmt: skip
    day = d.pick(*DAYS)
    pet = d.pick("dog", "cat", "parrot", "rabbit")
    lines = [
        d.pick(
            f"My name is {name}. Is the flat in {street} still to let?",
            f"Hello, {name} speaking. Is the flat in {street} still free?",
        ),
        d.pick(
            f"Yes, it has {rooms} rooms and {plus}.",
            f"It is. There are {rooms} rooms and {plus}.",
        ),
        d.pick("How much is the rent?", "Sounds nice. What does it cost?"),
        d.pick(f"{rent} dollars a month.", f"The rent is {rent} dollars."),
    ]
    outcome = d.pick("visit", "less", "pet")
    lead = f"{name} calls about a flat with {plus} in {street}."
    if outcome == "pet":
        lines += [
            d.pick(f"Fine. May I bring my {pet}?", f"OK. I have a {pet}. Is that all right?"),
            d.pick("I'm afraid pets are not allowed.", f"No, I can't accept a {pet}."),
            d.pick("Then I have to keep looking.", "What a pity. Goodbye, then."),
        ]
        ending = f"#Person2# does not allow a {pet}."
    else:
        if outcome == "less":
            lines += [
                d.pick(f"Would you take {less}?", f"Could we say {less} dollars?"),
                d.pick("Hmm, all right, if you stay a year.", f"OK, {less}, because you asked."),
            ]
            rent = less
        lines += [
            d.pick(f"Can I see it on {day}?", f"I'd like to visit it on {day}."),
            d.pick("Of course. I'll be there.", "Yes, just ring the bell."),
        ]
        ending = (
            f"#Person2# lowers the rent to {rent} dollars and shows it on {day}."
            if outcome == "less"
            else f"The rent is {rent} dollars and #Person2# shows it on {day}."
        )
    return Scene(tuple(lines), f"{lead} {ending}", "rent a flat")


def homework(d: Dice) -> Scene:
    """A pupil hands in homework late and explains why."""
    name = d.pick(*FIRST_NAMES)
    teacher, them = _person(d)
    subject = d.pick("maths", "English", "science", "art", "geography", "history", "Latin")
    excuse, told = d.pick(
        ("my computer broke down", "the computer broke down"),
        ("I was ill all week", "of an illness"), ("my dog ate it", "the dog ate it"),
        ("I left it on the bus", "it was left on the bus"),
        ("my grandfather was in hospital", "of a grandfather in hospital"),
        ("we had no electricity", "there was no electricity"),
        ("I had a football match", "of a football match"),
        ("I did not understand it", "it was too hard"),
    )  # fmt: skip
    day, late = d.ordered(*DAYS[:5])
    because = f"because {told}"
    lines = [
        d.pick(
            f"{name}, where is your {subject} homework?", f"{name}, you owe me your {subject} work."
        ),
        d.pick(f"I'm sorry, {teacher}, {excuse}.", f"I don't have it, {teacher}, since {excuse}."),
        *d.pick(
            ("That is not the first time.", "I know. Can I have more time?"),
            ("Why didn't you tell me earlier?", "I was afraid to. Could I do it later?"),
            ("What a poor excuse!", "But it is true. Please give me one more chance."),
        ),
        d.pick(f"You can hand it in on {day}.", f"Bring it to me on {day}, then."),
    ]
    outcome = d.pick("plain", "later", "help")
    lead = f"{name} does not have the {subject} homework {because}."
    if outcome == "plain":
        lines += [
            d.pick("Thank you. I promise I will.", "I will. It won't happen again."),
            d.pick("I hope so.", "Good. Sit down now."),
        ]
        ending = f"{teacher} wants it on {day}."
    elif outcome == "later":
        lines += [
            d.pick(f"Could it be {late}? I have a test on {day}.", f"{late} would be easier."),
            d.pick(f"All right, {late}, but not later.", f"Well, {late} is my last offer."),
        ]
        ending = f"{teacher} agrees to wait until {late} instead of {day}."
    else:
        lines += [
            d.pick("Could you explain it once more?", "I'm lost. Can you help me?"),
            d.pick("Yes, come to my office after class.", "Sure, stay after class today."),
        ]
        ending = f"{teacher} wants it on {day} and will help after class."
    return Scene(tuple(lines), f"{lead} {ending}", "late homework")


SCENES = (
    restaurant, doctor, luggage, interview, car_repair, hotel, course, purchase, moving,
    birthday, train, bank_card, library, gym, flat, homework,
)  # fmt: skip
