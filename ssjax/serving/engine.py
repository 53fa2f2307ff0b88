"""Continuous batching: who gets a slot, how long it is theirs, what is told to whom.

One thread runs the engine; any thread may submit and cancel. A round:

    drop      requests that were cancelled or are past their deadline
    admit     in the order of arrival, while slots are free and the round's prompt tokens last; a
              long prompt may be read in several rounds, piece by piece
    run       a few passes over all slots, up to the first end if somebody waits for a slot
    harvest   every request learns its tokens; finished ones leave their slots

What a request becomes is what `Decoder.generate` makes of it alone, whatever runs beside it.
"""

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import Way
from ssjax.decoding.room import check_positions
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.serving.actions import Actions
from ssjax.serving.adapters import Adapter, AdapterInUse, Adapters, Opened, UnknownAdapter
from ssjax.serving.constraints import Constraints
from ssjax.serving.drafts import Draft
from ssjax.serving.extras import NO_EXTRAS, Extras
from ssjax.serving.limits import EngineLimits, check_asked
from ssjax.serving.prefixes import Prefixes
from ssjax.serving.reading import ReaderLimits, Reading
from ssjax.serving.sizes import Size, plan
from ssjax.serving.slots import Slots, with_likeliest
from ssjax.serving.ticket import CANCELLED, TIMEOUT, TOO_COMPLEX, Asked, Ticket, Times
from ssjax.serving.totals import Totals


class Full(UserError):
    """The queue is full: try again later."""


class Stopped(UserError):
    """The engine takes no more requests."""


class Engine:
    """A model that answers requests.

    Args:
      decoder: the model, on one device.
      way: how drafts are written, for all requests.
      sampling: penalties, bans and fewest new tokens of all requests; its other fields are asked
        for by each.
      limits: sizes.
      extras: what there are more programs for.
      adapters: of the decoder, which its requests may name; None: there are none.

    Attributes:
      on_end: told of every ticket that ends and of its last completion, from the engine's thread;
        may be set before the engine runs.
      totals: of what has been done.
      problem: why it runs no more, or None.
      size: by which the latest passes were run.
      max_depth: of the deepest draft.
    """

    def __init__(
        self,
        decoder: Decoder,
        way: Way,
        sampling: Sampling,
        limits: EngineLimits,
        extras: Extras = NO_EXTRAS,
        adapters: Adapters | None = None,
    ):
        self.decoder, self.limits = decoder, limits
        self.sampling, self.adapters = sampling, adapters
        self._sizes = extras.sizes or (Size(limits.num_slots, way, tokens_per_call=1.0),)
        self.size = self._sizes[-1]
        self.max_depth = max(size.way.drafter.max_depth for size in self._sizes)
        self.totals = Totals(kept_by_depth=[0] * self.max_depth)
        self.problem: BaseException | None = None
        self.on_end: Callable[[Ticket, Completion], None] = lambda ticket, completion: None
        self._slots = Slots(
            decoder,
            self._sizes,
            sampling,
            num_slots=limits.num_slots,
            max_new_tokens=limits.max_new_tokens,
            reading=ReaderLimits(
                max_prompt_tokens=limits.max_prompt_tokens,
                num_eos_ids=limits.max_eos_ids,
                piece=limits.prefill_piece,
                prefix_bytes=limits.prefix_bytes,
            ),
            special=extras.special,
            adapters=adapters,
        )
        self._extras = extras
        self._constraints = Constraints(extras.grammars, limits.num_slots, self._slots.num_nodes)
        self._reading: dict[int, Reading] = {}  # by slot, of prompts that are not read to the end
        self._running: list[Ticket | None] = [None] * limits.num_slots
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._actions = Actions()
        self._changed = threading.Condition()
        self._ready = self._stopping = False

    @property
    def ready(self) -> bool:
        """Everything is compiled and requests are answered."""
        return self._ready and self.problem is None and not self._stopping

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return sum(ticket is not None for ticket in self._running)

    @property
    def prefixes(self) -> Prefixes | None:
        """What is kept of prompts; None: nothing is."""
        return self._slots.reader.prefixes

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def start(self) -> None:
        """Compiles every program. Raises: UserError, if the device has too little memory."""
        longest = self.limits.max_prompt_tokens + self.limits.max_new_tokens
        check_positions(self.decoder.model.config, longest)
        self._slots.start()
        if any(size.seconds is None for size in self._sizes) and len(self._sizes) > 1:
            self._sizes = tuple(self._slots.measured(self.limits.passes_per_round))
        self._plan = plan(self._sizes, self.limits.num_slots)
        self._slots.start_special(dict.fromkeys(self._plan))
        self._ready = True

    def submit(self, asked: Asked, notify: Callable[[], None] = lambda: None) -> Ticket:
        """Queues a request.

        Args:
          asked: what for.
          notify: called from the engine's thread whenever the ticket has changed; must be quick.

        Raises:
          UserError: what is asked for is beyond the limits or cannot work.
          Full: too many wait.
          Stopped: no requests are taken any more.
          UnknownAdapter: it is not there any more.
        """
        self.check(asked)
        with self._changed:
            if self._stopping or self.problem is not None:
                raise Stopped("the server is stopping; try another one")
            if len(self._waiting) >= self.limits.max_waiting:
                raise Full(f"{len(self._waiting)} requests are waiting already; try again later")
            if asked.adapter is not None and not self._has(asked.adapter):
                raise UnknownAdapter(f"adapter {asked.adapter.name!r} has been unloaded")
            empty = Completion((), "unfinished", (0,), (), self.max_depth)
            ticket = Ticket(asked, empty, Times(time.monotonic()), notify, self._count_end)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def check(self, asked: Asked) -> None:
        """Raises: UserError, if what is asked for is beyond the limits or cannot work."""
        check_asked(asked, self.limits, self.sampling, self._extras, self.decoder)

    def cancel(self, ticket: Ticket, finish: str = CANCELLED) -> None:
        """Ends a request at the next round, with the tokens that it has then, if it has not ended.

        Args:
          ticket: of the request.
          finish: how its completion ends.
        """
        with self._changed:
            ticket.cancelled = ticket.cancelled or finish
            self._changed.notify()

    def drafts(self, asked: Asked) -> bool:
        """Whether there are drafts for a request: a base or an adapter may have no streams."""
        if not asked.drafting:
            return False
        if self.adapters is None or not any(size.way.drafter.num_streams for size in self._sizes):
            return True
        adapter = asked.adapter
        return self.adapters.base_has_streams if adapter is None else adapter.has_streams

    def load_adapter(self, opened: Opened) -> concurrent.futures.Future:
        """Gives an adapter a place between two rounds; the result is an `Adapter`.

        Raises, in the future:
          UserError: its name is taken, or all places are.
          Stopped: no round comes any more.
        """
        return self._between_rounds(lambda: self.adapters.add(opened))

    def unload_adapter(self, name: str) -> concurrent.futures.Future:
        """Takes an adapter away between two rounds, if no request uses it.

        Raises, in the future:
          UnknownAdapter: there is none of that name.
          AdapterInUse: a request that runs or waits names it.
          Stopped: no round comes any more.
        """

        def unload() -> None:
            with self._changed:
                adapter = self.adapters.named.get(name)
                if adapter is None:
                    raise UnknownAdapter(f"the adapter {name!r} cannot be found")
                tickets = [*filter(None, self._running), *self._waiting]
                used = sum(ticket.asked.adapter is adapter for ticket in tickets)
                if used:
                    raise AdapterInUse(f"{used} requests use {name!r}; unload it when they end")
                self.adapters.remove(adapter)
            self._slots.reader.forget(adapter)

        return self._between_rounds(unload)

    def _between_rounds(self, action: Callable) -> concurrent.futures.Future:
        """What an action returns that the engine's thread calls before its next round."""
        with self._changed:
            if self._stopping or self.problem is not None:
                raise Stopped("the server is stopping; try another one")
            future = self._actions.add(action)
            self._changed.notify()
        return future

    def _has(self, adapter: Adapter) -> bool:
        return self.adapters is not None and self.adapters.holds(adapter)

    def stop(self) -> None:
        """`run` returns after its round, and whatever is left is cancelled."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Runs rounds until `stop`; to be called once, from the engine's own thread.

        An error ends every request and is kept as `problem`.
        """
        try:
            while not self._stopping:
                if not self.round():
                    with self._changed:
                        self._changed.wait_for(self._something_to_do)
        except BaseException as error:
            self.problem = error
            raise
        finally:
            self._end_all()

    def round(self) -> bool:
        """One round. Returns whether a request is left."""
        self._actions.run()
        self._drop()
        self._admit()
        busy = [
            slot
            for slot, ticket in enumerate(self._running)
            if ticket is not None and slot not in self._reading
        ]
        if busy and self._constraints.active:
            self._follow()
            busy = [slot for slot in busy if self._running[slot] is not None]
        if busy:
            self.size = self._plan[len(busy) - 1]
            watched = self._watch(busy)
            if self._constraints.active:
                how = {"until_end": False, "special": True, "allowed": self._constraints.masks}
                self._slots.run(1, self.size, busy, **how)
            else:
                # Who watches alone sees every pass; nobody else waits for that.
                alone = watched and self.num_running == 1
                num_passes = 1 if alone else self.limits.passes_per_round
                # A slot that somebody waits for is not left empty.
                special = any(self._is_special(self._running[slot].asked) for slot in busy)
                how = {"until_end": self.num_waiting > 0, "special": special}
                self._slots.run(num_passes, self.size, busy, **how)
            self._harvest()
        return bool(self.num_running or self.num_waiting)

    def _watch(self, busy: Sequence[int]) -> bool:
        """Keeps the drafts of the next pass for those who watch. Returns whether anyone does."""
        running = [(slot, self._running[slot]) for slot in busy]
        watched = [(slot, ticket) for slot, ticket in running if ticket.asked.watched]
        if watched:
            drafts = self._slots.read_draft()
            nodes = slice(0, 1 + self.size.num_draft_nodes)  # those that the pass will run
            for slot, ticket in watched:
                draft = Draft.of_row(drafts.tokens[slot, nodes], drafts.parent[slot, nodes])
                ticket.drafts[ticket.completion.calls + 1] = draft
        return bool(watched)

    def _is_special(self, asked: Asked) -> bool:
        """Its passes need what others do not."""
        return (self._extras.penalties and asked.penalised) or asked.num_likeliest > 0

    def _follow(self) -> None:
        """Masks for the next pass; ends requests whose grammar cannot be followed."""
        failed = self._constraints.follow(self._slots.read(), self._slots.read_draft())
        self._end_slots(dict.fromkeys(failed, TOO_COMPLEX))

    def _end_slots(self, finishes: dict[int, str]) -> None:
        """Ends running requests. finishes: by slot, how they end."""
        now = time.monotonic()
        if finishes:
            self._slots.drop(list(finishes))
        for slot, finish in finishes.items():
            ticket = self._leave(slot)
            ticket.end(finish, now)

    def _leave(self, slot: int) -> Ticket:
        """Empties a slot."""
        ticket, self._running[slot] = self._running[slot], None
        self._reading.pop(slot, None)
        self._constraints.end(slot)
        return ticket

    def _something_to_do(self) -> bool:
        return self._stopping or bool(self._waiting or self._actions)

    def _drop(self) -> None:
        now = time.monotonic()
        with self._changed:
            waiting = list(self._waiting)
            gone = [ticket for ticket in waiting if _unwanted(ticket, now)]
            for ticket in gone:
                self._waiting.remove(ticket)
        for ticket in gone:
            ticket.end(_unwanted(ticket, now), now)
        running = [(slot, ticket) for slot, ticket in enumerate(self._running) if ticket]
        finishes = {slot: _unwanted(ticket, now) for slot, ticket in running}
        self._end_slots({slot: finish for slot, finish in finishes.items() if finish})

    def _admit(self) -> None:
        reader, whole = self._slots.reader, self.limits.prefill_tokens
        budget = whole
        began_first = sorted(self._reading, key=lambda slot: self._running[slot].times.began)
        free = [slot for slot, ticket in enumerate(self._running) if ticket is None]
        for slot in (*began_first, *free):
            if slot not in self._reading:
                with self._changed:
                    if not self._waiting:
                        return
                    cost = reader.first_cost(self._waiting[0].asked)
                    if cost > budget < whole:
                        return
                    ticket = self._waiting.popleft()
                    self._running[slot] = ticket
                ticket.times.began = time.monotonic()
                asked = ticket.asked
                allowed = self._constraints.begin(slot, asked.grammar, len(asked.prompt))
                self._reading[slot] = reader.begin(asked, allowed)
                ticket.known = self._reading[slot].known
                self.totals.prompt_tokens += len(ticket.asked.prompt)
            reading = self._reading[slot]
            while reading.row is None:
                cost = reader.cost(reading)
                if cost > budget < whole:
                    return
                budget -= cost
                reader.advance(reading)
            self._slots.insert(slot, self._reading.pop(slot).row)

    def _harvest(self) -> None:
        host, likeliest = self._slots.read(), None
        now = time.monotonic()
        for slot, ticket in enumerate(self._running):
            if ticket is None or slot in self._reading:
                continue
            asked = ticket.asked
            found = host.completion(slot, len(asked.prompt), asked.eos_ids, self.max_depth)
            if not host.done[slot]:
                found = dataclasses.replace(found, finish="unfinished")
            if asked.num_likeliest:
                likeliest = likeliest or self._slots.read_likeliest()
                found = with_likeliest(found, ticket, likeliest, slot)
            self._count(ticket, found)
            if host.done[slot]:
                self._leave(slot)
            ticket.update(found, now)

    def _count(self, ticket: Ticket, after: Completion) -> None:
        drafted = self.size.num_draft_nodes if self.drafts(ticket.asked) else 0
        ticket.drafted += [drafted] * (after.calls - ticket.completion.calls)
        self.totals.add(ticket.completion, after, drafted)

    def _count_end(self, ticket: Ticket, completion: Completion) -> None:
        self.totals.finished[completion.finish] += 1
        self.on_end(ticket, completion)

    def _end_all(self) -> None:
        now = time.monotonic()
        with self._changed:
            left = [*filter(None, self._running), *self._waiting]
            self._running = [None] * self.limits.num_slots
            self._reading.clear()
            self._waiting.clear()
        self._actions.refuse(Stopped("the server is stopping; try another one"))
        for ticket in left:
            ticket.end(CANCELLED, now)


def _unwanted(ticket: Ticket, now: float) -> str:
    """How a ticket that nobody waits for any more ends; empty if someone does."""
    if ticket.cancelled:
        return ticket.cancelled
    deadline = ticket.asked.deadline
    return TIMEOUT if deadline is not None and now >= deadline else ""
