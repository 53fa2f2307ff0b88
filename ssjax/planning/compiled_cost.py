"""What a compiled program costs, read from its text: collectives and memory traffic.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here a body
counts as often as its loop, where the compiler knows how often: the layers of a scanned model
do. A loop of unknown length, such as the passes of a decoder, counts once.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

# Instructions that move nothing by themselves.
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "iota",
    "partition-id", "opt-barrier", "optimization-barrier", "bitcast-convert",
}  # fmt: skip
_BITS = {
    "pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32,
    "f32": 32, "s64": 64, "u64": 64, "f64": 64, "s4": 4, "u4": 4, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Of one device."""

    traffic: int  # bytes read and written by fusions and products
    collectives: Mapping[str, tuple[int, int]]  # by kind: how many, bytes that they produce


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    kind: str
    bytes: int  # in main memory
    all_bytes: int
    operands: tuple[str, ...]
    line: str


def program_cost(text: str, main_loop: bool = False) -> ProgramCost:
    """Adds up a program's text, `compiled.as_text()`.

    Args:
      text: of an optimised module.
      main_loop: count the body of the outermost loop of unknown length alone: one decode pass.
    """
    computations, entry = _parse(text)
    traffic, counts = 0, collections.Counter()
    produced = collections.Counter()

    def add(name, times):
        nonlocal traffic
        by_name, seen = {i.name: i for i in computations[name]}, set()
        for instruction in computations[name]:
            kind = instruction.kind.removesuffix("-start")
            called = _called(instruction.line)
            if kind == "while":
                add(called["body"], times * (_trips(computations, called) or 1))
            elif kind in ("call", "async", "conditional"):
                for inner in called.get("branches", []) or [called.get("to_apply")]:
                    if inner in computations:
                        add(inner, times)
            elif kind in COLLECTIVES:
                count(instruction, by_name, times, seen)
            elif kind not in _FREE and not kind.endswith("-done"):
                traffic += times * _traffic(instruction, by_name, computations, called)
                fused = computations.get(called.get("calls"), [])
                for inside in fused:
                    if inside.kind.removesuffix("-start") in COLLECTIVES:
                        count(inside, {i.name: i for i in fused}, times, seen)

    def count(instruction, by_name, times, seen):
        # An exchange that overlaps with a product stands in up to three fusions: its start, the
        # product, and its end. They have one channel.
        channel = re.search(r"channel_id=(\d+)", instruction.line)
        if channel:
            if channel.group(1) in seen:
                return
            seen.add(channel.group(1))
        kind, size = instruction.kind.removesuffix("-start"), instruction.all_bytes
        if kind != instruction.kind:  # the shape is (operands, results)
            size -= sum(by_name[o].all_bytes for o in instruction.operands if o in by_name)
        counts[kind] += times
        produced[kind] += times * max(size, 0)

    if main_loop:
        entry = _outer_loop(computations, entry)
    add(entry, 1)
    return ProgramCost(traffic, {k: (counts[k], produced[k]) for k in COLLECTIVES if counts[k]})


def count_flops(function, *arguments) -> int:
    """Floating-point operations of the matrix products of a function, of all devices together.

    Scans count as often as they run, loops of unknown length once, branches as their dearest.

    Args:
      function: to be traced.
      arguments: arrays or shape structs.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            contracted, _ = params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            depth = int(np.prod([lhs[axis] for axis in contracted[0]]))
            total += 2 * depth * int(np.prod(equation.outvars[0].aval.shape))
        elif name == "scan":
            total += params["length"] * _jaxpr_flops(params["jaxpr"].jaxpr)
        elif name == "while":
            total += _jaxpr_flops(params["body_jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_jaxpr_flops(branch.jaxpr) for branch in params["branches"])
        else:
            for value in params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += _jaxpr_flops(inner)
    return total


def _parse(text):
    """(instructions by computation, name of the entry)."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and "=" not in line.split("(")[0]:
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
            continue
        found = re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
        if current is None or not found:
            continue
        name, rest = found.groups()
        shape, rest = _split_shape(rest)
        kind = re.match(r"([\w\-]+)\(", rest)
        if kind:
            operands = _operands(rest[kind.end() :])
            sizes = _size(shape), _size(shape, on_chip=True)
            instruction = _Instruction(name, kind.group(1), *sizes, operands, line)
            computations[current].append(instruction)
    return computations, entry


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
    """Bytes of a shape or of a tuple of shapes; those on the chip itself, S(1), only if asked."""
    total = 0
    for kind, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        if kind in _BITS and (on_chip or "S(1)" not in layout):
            total += _BITS[kind] * int(np.prod([int(s) for s in sizes.split(",") if s] or [1])) // 8
    return total


def _called(line):
    called = dict(re.findall(r"(calls|body|condition|to_apply)=%?([\w.\-]+)", line))
    branches = re.search(r"branch_computations=\{([^}]*)\}", line)
    if branches:
        called["branches"] = re.findall(r"[\w.\-]+", branches.group(1))
    return called


def _traffic(instruction, by_name, computations, called):
    """Bytes that an instruction reads and writes; slices of a larger array count as slices."""
    if instruction.kind in ("dynamic-slice", "gather", "slice"):
        return 2 * instruction.bytes
    if instruction.kind in ("slice-start", "copy-start"):  # (operand, result) in some order
        operands = [by_name[name] for name in instruction.operands if name in by_name]
        moved = max(instruction.all_bytes - sum(i.all_bytes for i in operands), 0)
        written = max(instruction.bytes - sum(i.bytes for i in operands), 0)
        return min(moved, sum(i.bytes for i in operands)) + min(moved, written)
    if instruction.kind in ("dynamic-update-slice", "scatter"):
        update = by_name.get(instruction.operands[1]) if len(instruction.operands) > 1 else None
        return 2 * update.bytes if update else 0
    fused = called.get("calls")
    total = _written(instruction, computations.get(fused, []))
    for place, operand in enumerate(instruction.operands):
        size = by_name[operand].bytes if operand in by_name else 0
        total += min(size, _read(computations, fused, place, size)) if fused else size
    return total


def _written(instruction, fused):
    """Bytes of the results, without what a fusion hands through or writes in place."""
    inside = {i.name: i for i in fused}
    roots = [i for i in fused if "ROOT " in i.line]
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
    parameter = _parameters(fused).get(place)
    if parameter is None:
        return size
    total, known = 0, [parameter]
    while known:
        current = known.pop()
        for user in fused:
            if current not in user.operands:
                continue
            if user.kind in ("dynamic-slice", "gather", "slice"):
                total += user.all_bytes
            elif user.kind in ("bitcast", "reshape"):
                known.append(user.name)
            elif user.kind == "fusion":
                inner = _called(user.line).get("calls")
                for position, operand in enumerate(user.operands):
                    if operand == current:
                        total += _read(computations, inner, position, size)
            elif user.kind == "dynamic-update-slice" and user.operands[0] == current:
                continue  # written in place
            elif user.kind not in ("tuple", *COLLECTIVES):
                total += size
    return min(total, size)


def _parameters(fused):
    places = {}
    for instruction in fused:
        number = re.search(r" parameter\((\d+)\)", instruction.line)
        if number:
            places[int(number.group(1))] = instruction.name
    return places


def _outer_loop(computations, entry):
    for instruction in computations[entry]:
        called = _called(instruction.line)
        if instruction.kind == "while" and _trips(computations, called) is None:
            return called["body"]
    return entry


def _trips(computations, called):
    """How often a loop runs whose condition compares a counter with a constant; else None."""
    condition = {i.name: i for i in computations[called["condition"]]}
    compare = [i for i in condition.values() if "ROOT" in i.line and "direction=LT" in i.line]
    for operand in compare[0].operands if compare else ():
        value = re.search(r"constant\((\d+)\)", condition[operand].line)
        if value:
            return int(value.group(1))
    return None
