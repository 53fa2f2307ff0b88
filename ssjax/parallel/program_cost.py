"""What a program costs: its operations, counted before it is compiled, and then its memory."""

import jax
import numpy as np


def count_flops(function, *arguments) -> int:
    """Floating-point operations of the matrix products of a function, of all devices together.

    Scans count as often as they run, loops of unknown length once, branches as their dearest.

    Args:
      function: to be traced.
      arguments: arrays or shape structs.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def peak_memory(compiled) -> int:
    """Bytes of one device that a compiled program needs at once, its arguments included."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


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
