"""What a compiled program costs, read from its text: collectives and memory traffic.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here a body
counts as often as its loop, where the compiler knows how often: the layers of a scanned model
do. A loop of unknown length, such as the passes of a decoder, counts once.
"""

import collections
import dataclasses
from collections.abc import Mapping

from ssjax.planning.program_text import Instruction, Program, read_program

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_SLICES = ("dynamic-slice", "gather", "slice")
_MOVES_NOTHING = [
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "after-all",
    "iota",
    "partition-id",
    "opt-barrier",
    "optimization-barrier",
    "bitcast-convert",
]


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Of one device."""

    traffic: int  # bytes read and written by fusions and products
    collectives: Mapping[str, tuple[int, int]]  # by kind: how many, bytes that they produce


def program_cost(text: str, main_loop: bool = False) -> ProgramCost:
    """Adds up a program's text, `compiled.as_text()`.

    Args:
      text: of an optimised module.
      main_loop: count the body of the outermost loop of unknown length alone: one decode pass.
    """
    program = read_program(text)
    sums = _Sums(program)
    sums.add(program.outer_loop() if main_loop else program.entry, times=1)
    found = {k: (sums.counts[k], sums.produced[k]) for k in COLLECTIVES if sums.counts[k]}
    return ProgramCost(sums.traffic, found)


class _Sums:
    """What computations cost that were added so far."""

    def __init__(self, program: Program):
        self.traffic = 0
        self.counts = collections.Counter()  # by kind of collective
        self.produced = collections.Counter()  # bytes, by kind of collective
        self._program = program

    def add(self, name: str, times: int) -> None:
        """Adds a computation that runs some times, and what it calls."""
        computations = self._program.computations
        by_name, channels = _by_name(computations[name]), set()
        for instruction in computations[name]:
            kind, called = instruction.base_kind, instruction.called
            if kind == "while":
                self.add(called["body"], times * (self._program.trips(instruction) or 1))
            elif kind in ("call", "async", "conditional"):
                for inner in instruction.branches or [called.get("to_apply")]:
                    if inner in computations:
                        self.add(inner, times)
            elif kind in COLLECTIVES:
                self._count(instruction, by_name, times, channels)
            elif kind not in _MOVES_NOTHING and not kind.endswith("-done"):
                self.traffic += times * _traffic(instruction, by_name, computations)
                fused = computations.get(called.get("calls"), [])
                for inside in fused:
                    if inside.base_kind in COLLECTIVES:
                        self._count(inside, _by_name(fused), times, channels)

    def _count(self, instruction, by_name, times, channels):
        # An exchange that overlaps with a product stands in up to three fusions: its start, the
        # product, and its end. They have one channel.
        if instruction.channel:
            if instruction.channel in channels:
                return
            channels.add(instruction.channel)
        kind, size = instruction.base_kind, instruction.all_bytes
        if kind != instruction.kind:  # the shape is (operands, results)
            size -= sum(by_name[o].all_bytes for o in instruction.operands if o in by_name)
        self.counts[kind] += times
        self.produced[kind] += times * max(size, 0)


def _by_name(instructions: list[Instruction]) -> dict[str, Instruction]:
    return {instruction.name: instruction for instruction in instructions}


def _traffic(instruction, by_name, computations):
    """Bytes that an instruction reads and writes; slices of a larger array count as slices."""
    if instruction.kind in _SLICES:
        return 2 * instruction.bytes
    if instruction.kind in ("slice-start", "copy-start"):  # (operand, result) in some order
        operands = [by_name[name] for name in instruction.operands if name in by_name]
        moved = max(instruction.all_bytes - sum(i.all_bytes for i in operands), 0)
        written = max(instruction.bytes - sum(i.bytes for i in operands), 0)
        return min(moved, sum(i.bytes for i in operands)) + min(moved, written)
    if instruction.kind in ("dynamic-update-slice", "scatter"):
        update = by_name.get(instruction.operands[1]) if len(instruction.operands) > 1 else None
        return 2 * update.bytes if update else 0
    fused = instruction.called.get("calls")
    total = _written(instruction, computations.get(fused, []))
    for place, operand in enumerate(instruction.operands):
        size = by_name[operand].bytes if operand in by_name else 0
        total += min(size, _read(computations, fused, place, size)) if fused else size
    return total


def _written(instruction, fused):
    """Bytes of the results, without what a fusion hands through or writes in place."""
    inside = _by_name(fused)
    roots = [i for i in fused if i.is_root]
    if roots and roots[0].kind == "tuple":
        roots = [inside[name] for name in roots[0].operands if name in inside]
        if not any(i.bytes for i in roots):
            return 0
    elif instruction.bytes == 0:
        return 0
    total = 0
    for root in roots or [instruction]:
        if root.kind == "dynamic-update-slice":
            total += inside[root.operands[1]].all_bytes
        elif root.kind not in ("parameter", *COLLECTIVES):
            total += root.bytes
    return total


def _read(computations, name, place, size):
    """Bytes that a fused computation reads of its operand at a place, at most `size`."""
    fused = computations.get(name, [])
    total, known = 0, [i.name for i in fused if i.parameter == place]
    if not known:
        return size
    while known:
        current = known.pop()
        for user in fused:
            if current not in user.operands:
                continue
            if user.kind in _SLICES:
                total += user.all_bytes
            elif user.kind in ("bitcast", "reshape"):
                known.append(user.name)
            elif user.kind == "fusion":
                inner = user.called.get("calls")
                for position, operand in enumerate(user.operands):
                    if operand == current:
                        total += _read(computations, inner, position, size)
            elif user.kind == "dynamic-update-slice" and user.operands[0] == current:
                continue  # written in place
            elif user.kind not in ("tuple", *COLLECTIVES):
                total += size
    return min(total, size)
