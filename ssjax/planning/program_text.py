"""The text of a compiled program, `compiled.as_text()`, as instructions by computation.

XLA gives no other view of what its optimiser made: which fusions there are, what they read, where
an exchange between devices stands. `tests/planning` holds a program by hand.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_TYPES_BY_BITS = {
    4: "s4 u4",
    8: "pred s8 u8 f8e4m3fn f8e5m2",
    16: "s16 u16 bf16 f16",
    32: "s32 u32 f32",
    64: "s64 u64 f64",
}
_BITS = {name: bits for bits, names in _TYPES_BY_BITS.items() for name in names.split()}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    kind: str  # such as fusion, dot, all-gather-start
    bytes: int  # of its result, in main memory
    all_bytes: int  # those on the chip itself too
    operands: tuple[str, ...]  # names of instructions
    line: str

    @property
    def base_kind(self) -> str:
        """Without the suffix of what begins and goes on beside others."""
        return self.kind.removesuffix("-start")

    @property
    def is_root(self) -> bool:
        """Whether it is the result of its computation."""
        return "ROOT " in self.line

    @property
    def called(self) -> dict[str, str]:
        """Computations that it runs: calls, body, condition, to_apply."""
        return dict(re.findall(r"(calls|body|condition|to_apply)=%?([\w.\-]+)", self.line))

    @property
    def branches(self) -> list[str]:
        """Computations of which it runs one."""
        if found := re.search(r"branch_computations=\{([^}]*)\}", self.line):
            return re.findall(r"[\w.\-]+", found.group(1))
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.line)

    @property
    def channel(self) -> str | None:
        """That an exchange uses; its start and its end have the same."""
        found = re.search(r"channel_id=(\d+)", self.line)
        return found and found.group(1)

    @property
    def scope(self) -> str:
        """Where in the traced program it comes from, names joined by /; empty: not known."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found.group(1) if found else ""

    @property
    def cycles(self) -> int | None:
        """What the compiler of TPU programs expects it to take; None: it does not say."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return found and int(found.group(1))

    @property
    def target(self) -> str:
        """What a custom call calls, such as tpu_custom_call for a Pallas kernel; else empty."""
        found = re.search(r'custom_call_target="([^"]*)"', self.line)
        return found.group(1) if found else ""

    @property
    def parameter(self) -> int | None:
        """Which parameter of its computation it is."""
        found = re.search(r" parameter\((\d+)\)", self.line)
        return found and int(found.group(1))


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs, and how often."""

    instruction: Instruction
    times: int
    computation: str  # that it stands in
    siblings: Mapping[str, Instruction]  # of that computation, by name


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a module."""

    computations: dict[str, list[Instruction]]
    entry: str

    def executed(self, name: str, times: int = 1) -> Iterator[Executed]:
        """What a computation runs and what it calls, without the loops and calls themselves.

        The body of a loop counts as often as it runs, of an unknown length once. Of branches the
        one with the most instructions counts: here they are passes of several widths, the widest
        last, or kinds of layers.

        Args:
          name: of the computation.
          times: that it runs itself.
        """
        siblings = by_name(self.computations[name])
        for instruction in self.computations[name]:
            kind, called = instruction.base_kind, instruction.called
            if kind == "while":
                trips = self.trips(instruction) or 1
                yield from self.executed(called["body"], times * trips)
            elif kind == "conditional":
                branches = [each for each in instruction.branches if each in self.computations]
                longest = max(reversed(branches), key=lambda each: len(self.computations[each]))
                yield from self.executed(longest, times)
            elif kind in ("call", "async"):
                inner = called.get("to_apply") or called.get("calls")
                if inner in self.computations:
                    yield from self.executed(inner, times)
            else:
                yield Executed(instruction, times, name, siblings)

    def outer_loop(self) -> str:
        """The body of the outermost loop of unknown length; without one, the entry."""
        for instruction in self.computations[self.entry]:
            if instruction.kind == "while" and self.trips(instruction) is None:
                return instruction.called["body"]
        return self.entry

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs whose condition compares a counter with a constant; else None."""
        condition = {i.name: i for i in self.computations[loop.called["condition"]]}
        compare = [i for i in condition.values() if i.is_root and "direction=LT" in i.line]
        for operand in compare[0].operands if compare else ():
            value = re.search(r"constant\((\d+)\)", condition[operand].line)
            if value:
                return int(value.group(1))
        return None


def by_name(instructions: Sequence[Instruction]) -> dict[str, Instruction]:
    """Instructions of one computation by their names."""
    return {instruction.name: instruction for instruction in instructions}


def read_program(text: str) -> Program:
    """Reads the text of an optimised module."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and "=" not in line.split("(")[0]:
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
        elif current is not None and (instruction := _read_line(line)):
            computations[current].append(instruction)
    return Program(computations, entry)


def _read_line(line: str) -> Instruction | None:
    found = re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
    if not found:
        return None
    name, rest = found.groups()
    shape, rest = _split_shape(rest)
    kind = re.match(r"([\w\-]+)\(", rest)
    if not kind:
        return None
    operands = _operands(rest[kind.end() :])
    return Instruction(
        name, kind.group(1), _size(shape), _size(shape, on_chip=True), operands, line
    )


def _split_shape(text):
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 2 :]
    return text, ""


def _operands(text):
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return tuple(re.findall(r"%([\w.\-]+)", text[:place]))
    return ()


def _size(shape, on_chip=False):
    """Bytes of a shape or of a tuple of shapes; those on the chip itself, S(1), only if asked.

    S(2) are flags that say when a copy is done.
    """
    total = 0
    for kind, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        elsewhere = "S(2)" if on_chip else "S("
        if kind in _BITS and elsewhere not in layout:
            total += _BITS[kind] * int(np.prod([int(s) for s in sizes.split(",") if s] or [1])) // 8
    return total
