"""The scenes of the generated sample: who wants what, what happens, and its summary.

They are written down in scenes.json, where a scene is a list of steps:

    {"pick": "day", "from": "days"}              sets a slot to one of its own list or a named one
    {"pick": ["how", "fact"], "from": [...]}     sets several at once, from a list of lists
    {"pick": ..., "from": ..., "but": "{time}"}  leaves one item out
    {"two": ["day", "late"], "from": "days"}     sets two slots to different items
    {"ordered": ["day", "late"], "from": ...}    the same, in the order in which they are listed
    {"chance": "full", "of": 0.3}                sets a slot to yes with this probability, else no
    {"set": "day", "to": "{late}"}               sets a slot, from what the others are by then
    {"say": ["Hello.", ["Hi.", "Hi!"]]}          says one of a list: a line, or several in turn
    {"case": "full", "yes": [...], "else": ...}  goes on with the steps for the value of a slot
    {"summary": "...", "topic": "..."}           ends the scene

{day} in a text is the value of that slot, {Day} the same with a capital letter. The speakers
alternate. Where one changes their mind, the summary follows the last value, and the form of the
summary follows from what happened in the dialogue, so that it can be learned and not only guessed.
"""

import functools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Step = Mapping[str, Any]


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


def names() -> tuple[str, ...]:
    """Of all scenes, in the order that draws go by."""
    return tuple(_read()["scenes"])


def play(name: str, dice: Dice) -> Scene:
    """Draws the slots of a scene and writes its lines and its summary."""
    stage = _Stage(dice)
    stage.perform(_read()["scenes"][name]["steps"])
    return Scene(tuple(stage.lines), stage.summary, stage.topic)


@functools.cache
def _read() -> Mapping[str, Any]:
    return json.loads((resources.files("ssjax.data") / "scenes.json").read_text(encoding="utf-8"))


class _Slots(dict[str, str]):
    """Values by name; a name with a capital letter gives the value one."""

    def __missing__(self, name: str) -> str:
        if name[0].islower():
            raise KeyError(name)
        return self[name.lower()].capitalize()


@dataclass
class _Stage:
    """A scene while it is played."""

    dice: Dice
    slots: _Slots = field(default_factory=_Slots)
    lines: list[str] = field(default_factory=list)
    summary: str = ""
    topic: str = ""

    def perform(self, steps: Sequence[_Step]) -> None:
        """Does one step after another."""
        for step in steps:
            kind = next(iter(step))
            if kind == "case":
                value = self.slots[step["case"]]
                self.perform(step[value] if value in step else step.get("else", ()))
            elif kind == "say":
                self.lines += self._texts(self.dice.pick(*_listed(step["say"])))
            elif kind == "summary":
                self.summary, self.topic = self._texts([step["summary"], step["topic"]])
            else:
                slots = [step[kind]] if isinstance(step[kind], str) else step[kind]
                self.slots.update(zip(slots, self._values(kind, step), strict=True))

    def _values(self, kind: str, step: _Step) -> Iterator[str]:
        """Of the slots that a step sets."""
        if kind == "chance":
            return iter(["yes" if self.dice.chance(step["of"]) else "no"])
        if kind == "set":
            return self._texts(step["to"])
        items = _listed(step["from"])
        if "but" in step:
            (out,) = self._texts(step["but"])
            items = [item for item in items if item != out]
        draw = {"pick": self.dice.pick, "two": self.dice.two, "ordered": self.dice.ordered}
        return self._texts(draw[kind](*items))

    def _texts(self, given: str | Sequence[str]) -> Iterator[str]:
        """One text or several, filled in."""
        texts = [given] if isinstance(given, str) else given
        return (text.format_map(self.slots) for text in texts)


def _listed(items: str | Sequence[Any]) -> Sequence[Any]:
    """The items of a list, or of the list of that name."""
    return _read()["lists"][items] if isinstance(items, str) else items
