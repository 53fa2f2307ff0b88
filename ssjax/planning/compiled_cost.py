"""What a compiled program costs, read from its text: collectives and memory traffic.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here a body
counts as often as its loop, where the compiler knows how often: the layers of a scanned model
do. A loop of unknown length, such as the passes of a decoder, counts once.
"""

import collections
import dataclasses
from collections.abc import Mapping

from ssjax.planning.program_text import Executed, Program, by_name

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_SAME_VALUES = ("bitcast", "reshape", "copy")
_SLICES = ("dynamic-slice", "gather", "slice")
MOVES_NOTHING = [
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


def program_cost(program: Program, main_loop: bool = False) -> ProgramCost:
    """Adds up a program.

    Args:
      program: an optimised module.
      main_loop: count the body of the outermost loop of unknown length alone: one decode pass.
    """
    sums = _Sums(program)
    for each in program.executed(program.outer_loop() if main_loop else program.entry):
        sums.add(each)
    found = {k: (sums.counts[k], sums.produced[k]) for k in COLLECTIVES if sums.counts[k]}
    return ProgramCost(sums.traffic, found)


class _Sums:
    """What the instructions cost that were added so far."""

    def __init__(self, program: Program):
        self.traffic = 0
        self.counts = collections.Counter()  # by kind of collective
        self.produced = collections.Counter()  # bytes, by kind of collective
        self._program = program
        self._channels = set()

    def add(self, executed: Executed) -> None:
        """Adds an instruction that runs some times, and what it fuses."""
        instruction, times = executed.instruction, executed.times
        kind, computations = instruction.base_kind, self._program.computations
        if kind in COLLECTIVES:
            self._count(instruction, executed.siblings, executed)
        elif kind not in MOVES_NOTHING and not kind.endswith("-done"):
            self.traffic += times * traffic_of(executed, self._program)
            fused = computations.get(instruction.called.get("calls"), [])
            for inside in fused:
                if inside.base_kind in COLLECTIVES:
                    self._count(inside, by_name(fused), executed)

    def _count(self, instruction, siblings, executed):
        # An exchange that overlaps with a product stands in up to three fusions: its start, the
        # product, and its end. They have one channel.
        if instruction.channel:
            place = (executed.computation, instruction.channel)
            if place in self._channels:
                return
            self._channels.add(place)
        kind, size = instruction.base_kind, instruction.all_bytes
        if kind != instruction.kind:  # the shape is (operands, results)
            size -= sum(siblings[o].all_bytes for o in instruction.operands if o in siblings)
        self.counts[kind] += executed.times
        self.produced[kind] += executed.times * max(size, 0)


def traffic_of(executed: Executed, program: Program) -> int:
    """Bytes that an instruction reads and writes once; slices of a larger array count as slices."""
    instruction, siblings = executed.instruction, executed.siblings
    computations = program.computations
    if instruction.kind in _SLICES:
        return 2 * instruction.bytes
    if instruction.kind in ("slice-start", "copy-start"):  # (operand, result) in some order
        operands = [siblings[name] for name in instruction.operands if name in siblings]
        moved = max(instruction.all_bytes - sum(i.all_bytes for i in operands), 0)
        written = max(instruction.bytes - sum(i.bytes for i in operands), 0)
        return min(moved, sum(i.bytes for i in operands)) + min(moved, written)
    if instruction.kind in ("dynamic-update-slice", "scatter"):
        update = siblings.get(instruction.operands[1]) if len(instruction.operands) > 1 else None
        return 2 * update.bytes if update else 0
    fused = instruction.called.get("calls")
    total = _written(instruction, computations.get(fused, []))
    for place, operand in enumerate(instruction.operands):
        size = siblings[operand].bytes if operand in siblings else 0
        total += min(size, _read(computations, fused, place, size)) if fused else size
    return total


def _written(instruction, fused):
    """Bytes of the results, without what a fusion hands through or writes in place."""
    inside = by_name(fused)
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


def _hands_through(computations, name):
    """Whether a fused computation has the values of its operand, in another form at most."""
    return all(
        _hands_through(computations, each.called.get("calls"))
        if each.kind == "fusion"
        else each.kind in ("parameter", *_SAME_VALUES)
        for each in computations.get(name, [])
    )


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
            elif user.kind in _SAME_VALUES:
                known.append(user.name)
            elif user.kind == "fusion":
                inner = user.called.get("calls")
                if _hands_through(computations, inner):  # what is used of it is read, by who does
                    known.append(user.name)
                    continue
                for position, operand in enumerate(user.operands):
                    if operand == current:
                        total += _read(computations, inner, position, size)
            elif user.kind == "dynamic-update-slice" and user.operands[0] == current:
                continue  # written in place
            elif user.kind not in ("tuple", *COLLECTIVES):
                total += size
    return min(total, size)
