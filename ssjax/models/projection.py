"""Linear maps: a weight stored [out, in], with LoRA where it is asked for."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssjax.models import int8
from ssjax.models.attention import matmul_precision
from ssjax.models.axes import PROJECTIONS, gathered
from ssjax.models.execution import Execution
from ssjax.models.int8 import Int8, Weight
from ssjax.models.layout import Layout
from ssjax.models.lora import LoRA
from ssjax.models.parameters import JOINED


class Projection(nn.Module):
    """A linear map, its weight stored [out, in] as in Hugging Face files, with optional LoRA.

    No transpose on import or export, and on CPU eight rows through an MLP of 512 cost
    1.5 to 1.9 times less than with [in, out].
    """

    features: int
    dtype: jnp.dtype
    bias: bool
    lora: LoRA | None
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[B, X, in] -> [B, X, out]."""
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0
        )
        width = x.shape[-1]
        out_axis, in_axis = PROJECTIONS[self.name]

        def product(x, weight, *axes):
            weight = gathered(int8.cast(weight, self.dtype), *axes)
            return project(x, weight, self.dtype, self.execution)

        weight = self.param("weight", init, (self.features, width), jnp.float32)
        y = product(x, weight, out_axis, in_axis)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        lora = self.lora
        if lora is None or self.name not in lora.targets:
            return y
        adapters = {
            name: (
                self.param(f"{name}_a", init, (lora.rank, width), jnp.float32),
                self.param(
                    f"{name}_b", nn.initializers.zeros, (self.features, lora.rank), jnp.float32
                ),
            )
            for name in lora.streams
        }

        def updated(rows, names, stopped=()):
            total = y[:, rows]
            for name in names:
                a, b = adapters[name]
                low = x[:, rows]
                if name in stopped:  # a part of the weights here, so nothing is dropped either
                    a, b = jax.lax.stop_gradient((a, b))
                else:
                    low = nn.Dropout(lora.dropout, deterministic=not layout.dropout)(low)
                low = product(low, a, "rank", in_axis) * jnp.asarray(lora.scale, self.dtype)
                total = total + product(low, b, out_axis, "rank")
            return total

        num_main = layout.num_main
        if lora.main == lora.streams:
            return updated(slice(None), lora.main)
        # Main rows apart: then what is dropped of them, too, does not depend on streams.
        parts = [updated(slice(num_main), lora.main)] if num_main else []
        if num_main < x.shape[1]:
            parts.append(updated(slice(num_main, None), lora.streams, stopped=lora.main))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


# Above this many rows both ways of `project` take about the same time on CPU.
_FEW_ROWS = 64
# The rows of a register of the TPU's vector unit. A pass has at most so many rows: 8 drafts of 64
# nodes; what has more is a prefill.
_ROW_TILE, _ROWS_OF_A_PASS = 8, 512


def project(x: jax.Array, weight: Weight, dtype, execution: Execution, result=None) -> jax.Array:
    """x [..., in] times weight [out, in] -> [..., out].

    With execution.few_rows_as_columns, 2 to 64 rows are multiplied as weight @ rows.T, which XLA's
    CPU library does without packing the weight, for a power of two of them best. 24 pairs of
    512 x 1408 on two CPU cores, milliseconds:

        number of rows     1     2     4     8     9    16    32    64
        rows @ weight.T  6.4  11.1  13.9  19.5  17.1  19.4  24.0  33.8
        weight @ rows.T  6.5   7.9   8.8  12.5  11.8  12.3  16.7  27.7

    With execution.few_rows_padded, up to 512 rows are multiplied as one matrix of a multiple of 8
    of them. For a single row the TPU's compiler otherwise multiplies and adds on the vector unit,
    which takes twice as long as a pass should, and for several with a batch before them it copies
    weights first; and what is rounded where does not depend on how many rows there are.

    Args:
      x, weight: multiplied in `dtype`; scales of a weight in eight bits come after, in float32.
        Under `jax.vmap` a weight that all share is still multiplied once, with the rows of all.
      dtype: of the product, float32 or bfloat16.
      execution: see above.
      result: dtype that is returned; None: `dtype`.
    """
    if isinstance(weight, Int8):
        y = project(x, weight.values, dtype, execution, result=jnp.float32) * weight.scale
        return y.astype(dtype if result is None else result)
    x, weight = x.astype(dtype), weight.astype(dtype)
    if execution.few_rows_as_columns or execution.few_rows_padded:
        return _product_of_few(execution, result)(x, weight)
    return _product(x, weight, execution, result)


def _product_of_few(execution: Execution, result):
    """`_product`, which counts its rows after `jax.vmap` has added to them. Not differentiable."""

    @jax.custom_batching.custom_vmap
    def product(x, weight):
        return _product(x, weight, execution, result)

    @product.def_vmap
    def _(size, is_mapped, x, weight):
        if not is_mapped[1]:
            return product(x, weight), True
        x = x if is_mapped[0] else jnp.broadcast_to(x, (size, *x.shape))
        contracted, batch = ((x.ndim - 1,), (2,)), ((0,), (0,))
        y = jax.lax.dot_general(
            x,
            weight,
            (contracted, batch),
            precision=matmul_precision(x.dtype),
            preferred_element_type=result,
        )
        return y, True

    return product


def _product(x, weight, execution, result):
    *shape, width = x.shape
    num_rows = math.prod(shape)
    product = functools.partial(
        jax.lax.dot_general, precision=matmul_precision(x.dtype), preferred_element_type=result
    )
    # The barriers keep XLA from turning either into the plain product. What is rounded in a result
    # is then rounded there, whatever reads it; a wider result need not be written to be read.
    if execution.few_rows_as_columns and 1 < num_rows <= _FEW_ROWS:
        rows = _padded(x, max(4, 1 << (num_rows - 1).bit_length()))
        columns = jax.lax.optimization_barrier(product(weight, rows, (((1,), (1,)), ((), ()))))
        return columns[:, :num_rows].T.reshape(*shape, columns.shape[0])
    if execution.few_rows_padded and num_rows <= _ROWS_OF_A_PASS:
        rows = _padded(x, -(-num_rows // _ROW_TILE) * _ROW_TILE)
        y = product(rows, weight, (((1,), (1,)), ((), ())))
        if len(rows) > num_rows or result is None:
            y = jax.lax.optimization_barrier(y)
        return y[:num_rows].reshape(*shape, y.shape[1])
    return product(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


def project_each(
    x: jax.Array, weight: jax.Array, dtype, execution: Execution, result=None
) -> jax.Array:
    """x [..., Q, in], each of the Q by its own weight [Q, out, in] -> [..., Q, out].

    Arguments are those of `project`; with execution.few_rows_padded, rows are padded as there.
    """
    x, weight = x.astype(dtype), weight.astype(dtype)
    product = functools.partial(
        jnp.einsum, precision=matmul_precision(dtype), preferred_element_type=result
    )
    *shape, num_weights, width = x.shape
    num_rows = math.prod(shape)
    if not execution.few_rows_padded or num_rows > _ROWS_OF_A_PASS:
        return product("...qd,qvd->...qv", x, weight)
    rows = x.reshape(num_rows, num_weights * width)
    rows = _padded(rows, -(-num_rows // _ROW_TILE) * _ROW_TILE).reshape(-1, num_weights, width)
    y = jax.lax.optimization_barrier(product("nqd,qvd->nqv", rows, weight))
    return y[:num_rows].reshape(*shape, *y.shape[1:])


def _padded(x, num_rows):
    """x [..., in] as rows, and rows of zeros after them: [num_rows, in]."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.pad(rows, [(0, num_rows - rows.shape[0]), (0, 0)])


def is_joined(name: str, lora: LoRA | None, execution: Execution) -> bool:
    """Whether `parameters.join_projections` made one weight of these projections."""
    return execution.joined_projections and not (lora and set(JOINED[name]) & set(lora.targets))
