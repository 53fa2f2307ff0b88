"""The time that the TPU compiler expects a program to take, read from the program's text.

Nearly every fusion, product and copy of a TPU program carries `estimated_cycles`; summed over what
runs and divided by the clock of the chip they are a time *predicted by the compiler*. It is no
measurement, and no bound either. Products of 8192 x 8192 come out at 88 % of the peak on v5e and at
70 % on v6e, products that wait for their weights at 70 and 82 % of the bandwidth; elementwise work
and copies at two to four times what their bytes would need (jax 0.10.2, libtpu 0.0.42).

What carries no estimate is told, not guessed: sorts, gathers, scatters and Pallas kernels are
counted. Bytes that copies move beside other work, and those of exchanges between chips that stand
alone, are given the bandwidth of what they go through, as if nothing hid them; exchanges that the
compiler fused with a product run beside it and count nothing.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from ssjax.planning.compiled_cost import COLLECTIVES, MOVES_NOTHING, traffic_of
from ssjax.planning.program_text import Executed, Instruction, Program
from ssjax.planning.topologies import Chip

# Parts in the order of a pass. Those of a gradient have BACKWARD after them.
TRUNK, STREAM_LAYERS, STREAMS = "trunk", "stream layers", "streams, deferred"
ATTENTION, ATTENTION_OF_STREAMS = "attention", "attention, streams"
HEAD, HEAD_OF_DRAFTS = "head", "head, drafts"
CACHE_WRITE, DRAFTING, REST = "cache write", "drafting", "the rest"
UNNAMED = "moved by the compiler"
BESIDE = "copies beside other work"
EXCHANGES = "exchanges between chips"
BACKWARD = ", backward"
_ORDER = (
    *(TRUNK, STREAM_LAYERS, ATTENTION, HEAD, CACHE_WRITE),
    *(STREAMS, ATTENTION_OF_STREAMS, HEAD_OF_DRAFTS, DRAFTING),
    *(REST, UNNAMED, BESIDE, EXCHANGES),
)
IN_ORDER = tuple(part + which for part in _ORDER for which in ("", BACKWARD))

# Cycles below which nearly all is the start of an operation: an empty one has 2,120 on v6e.
SMALL = 4000
_COPIES_BESIDE = ("copy-start", "slice-start")
_NO_WORK = ("AllocateBuffer", "ConcatBitcast")  # custom calls that only name memory
_CALLED = {"tpu_custom_call": "Pallas kernel", "TopK": "top-k"}
_ONE_NUMBER = 8  # bytes; such results are computed by the scalar unit, beside the rest


@dataclasses.dataclass(frozen=True)
class Part:
    """What one part of a program takes."""

    cycles: int
    operations: int  # that carry an estimate, as often as they run


@dataclasses.dataclass(frozen=True)
class PredictedTime:
    """Of one device: the compiler's estimates, and what it says nothing of."""

    parts: Mapping[str, Part]  # by name, in order
    small: Part  # of all parts, operations of less than SMALL cycles
    without_estimate: Mapping[str, int]  # how many by kind, such as sort or a kernel's name
    beside: int  # bytes of copies that run beside other work
    exchanged: int  # bytes that exchanges produce and that carry no estimate

    def seconds_by_part(self, chip: Chip) -> dict[str, float]:
        """Seconds by part, in the order of `parts`, and those of bytes that carry no estimate."""
        found = {name: part.cycles / chip.clock for name, part in self.parts.items()}
        if self.beside:
            found[BESIDE] = self.beside / chip.bandwidth
        if self.exchanged:
            found[EXCHANGES] = self.exchanged / chip.interconnect
        return found

    def seconds(self, chip: Chip) -> float:
        """Of all parts."""
        return sum(self.seconds_by_part(chip).values())

    def values(self, chip: Chip) -> dict[str, Any]:
        """Plain values of all that is known."""
        return {
            "by": "the TPU compiler",
            "seconds": self.seconds(chip),
            "parts": self.seconds_by_part(chip),
            "operations": sum(part.operations for part in self.parts.values()),
            "small": {
                "operations": self.small.operations,
                "seconds": self.small.cycles / chip.clock,
            },
            "without_estimate": dict(self.without_estimate),
        }


def predicted_time(program: Program, main_loop: bool = False) -> PredictedTime:
    """Adds up the compiler's estimates.

    Args:
      program: an optimised module for TPU.
      main_loop: count the body of the outermost loop of unknown length alone: one decode pass.
    """
    cycles, operations = collections.Counter(), collections.Counter()
    without, small = collections.Counter(), Part(0, 0)
    beside = exchanged = 0
    for each in program.executed(program.outer_loop() if main_loop else program.entry):
        instruction, times = each.instruction, each.times
        estimate = instruction.cycles
        if estimate is not None:
            part = part_of(instruction)
            cycles[part] += times * estimate
            operations[part] += times
            if estimate < SMALL:
                small = Part(small.cycles + times * estimate, small.operations + times)
        elif instruction.kind in _COPIES_BESIDE:
            beside += times * traffic_of(each, program)
        elif instruction.base_kind in COLLECTIVES:
            exchanged += times * _produced(each)
        elif _works(instruction):
            without[_described(instruction, program)] += times
    found = sorted(cycles, key=IN_ORDER.index)
    parts = {name: Part(cycles[name], operations[name]) for name in found}
    return PredictedTime(parts, small, dict(without.most_common()), beside, exchanged)


def part_of(instruction: Instruction) -> str:
    """The part of a program that an instruction belongs to, by where it was traced.

    The names of the scopes are those in `ssjax.models` and `ssjax.decoding.loop`. What is unnamed
    was added by the compiler: copies into another layout, most of them.
    """
    scope = instruction.scope
    if not scope.startswith("jit("):
        return UNNAMED
    names = set(scope.split("/"))
    part = _part_of_pass(scope, names)
    return part + BACKWARD if any(name.startswith("transpose(") for name in names) else part


def _part_of_pass(scope, names):
    # In a prefill the first draft has no scope of its own.
    drafting = "draft" in names or "Transformer.speculate" in names
    if "head" in names:
        return HEAD_OF_DRAFTS if drafting else HEAD
    if "._attend" in scope:
        return ATTENTION_OF_STREAMS if drafting else ATTENTION
    if names & {"trunk", "stream_layers"}:
        if drafting:
            return STREAMS
        return STREAM_LAYERS if "stream_layers" in names else TRUNK
    if "write" in names:
        return CACHE_WRITE
    return DRAFTING if drafting else REST


def _works(instruction):
    """Whether something without an estimate may take time on the chip's units."""
    kind = instruction.kind
    if kind in MOVES_NOTHING or kind.endswith("-done") or instruction.target in _NO_WORK:
        return False
    return instruction.all_bytes > _ONE_NUMBER


def _described(instruction, program):
    """What an operation without an estimate is called in a table."""
    if instruction.target:
        return _CALLED.get(instruction.target, instruction.target)
    if instruction.kind == "fusion":
        inside = program.computations.get(instruction.called.get("calls"), ())
        if any(each.base_kind in COLLECTIVES for each in inside):
            return "exchange beside a product"
        return instruction.scope.rpartition("/")[2] or "fusion"
    return instruction.kind


def _produced(executed: Executed) -> int:
    """Bytes that an exchange produces."""
    instruction = executed.instruction
    size = instruction.all_bytes
    if instruction.kind != instruction.base_kind:  # the shape is (operands, results)
        known = [executed.siblings[name] for name in instruction.operands]
        size -= sum(each.all_bytes for each in known)
    return max(size, 0)
