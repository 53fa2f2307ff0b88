"""Linear maps: a weight stored [out, in], with LoRA where it is asked for."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssjax.models.attention import matmul_precision
from ssjax.models.axes import PROJECTIONS, gathered
from ssjax.models.execution import Execution
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
            weight = gathered(weight.astype(self.dtype), *axes)
            return project(x, weight, self.dtype, self.execution)

        weight = self.param("weight", init, (self.features, width), jnp.float32)
        y = product(x, weight, out_axis, in_axis)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        if self.lora is None or self.name not in self.lora.targets:
            return y
        rank = self.lora.rank
        lora_a = self.param("lora_a", init, (rank, width), jnp.float32)
        lora_b = self.param("lora_b", nn.initializers.zeros, (self.features, rank), jnp.float32)
        num_plain = layout.num_main if self.lora.stream_rows_only else 0
        if num_plain == x.shape[1]:
            return y
        low = nn.Dropout(self.lora.dropout, deterministic=not layout.dropout)(x[:, num_plain:])
        low = product(low, lora_a, "rank", in_axis) * jnp.asarray(self.lora.scale, self.dtype)
        update = product(low, lora_b, out_axis, "rank")
        if num_plain == 0:
            return y + update
        return jnp.concatenate([y[:, :num_plain], y[:, num_plain:] + update], axis=1)


# Above this many rows both ways of `project` take about the same time.
_FEW_ROWS = 64


def project(x: jax.Array, weight: jax.Array, dtype, execution: Execution, result=None) -> jax.Array:
    """x [..., in] times weight [out, in] -> [..., out].

    With execution.few_rows_as_columns, 2 to 64 rows are multiplied as weight @ rows.T, which XLA's
    CPU library does without packing the weight, for a power of two of them best. 24 pairs of
    512 x 1408 on two CPU cores, milliseconds:

        number of rows     1     2     4     8     9    16    32    64
        rows @ weight.T  6.4  11.1  13.9  19.5  17.1  19.4  24.0  33.8
        weight @ rows.T  6.5   7.9   8.8  12.5  11.8  12.3  16.7  27.7

    Args:
      x, weight: multiplied in `dtype`.
      dtype: of the product, float32 or bfloat16.
      execution: see above.
      result: dtype that is returned; None: `dtype`.
    """
    x, weight = x.astype(dtype), weight.astype(dtype)
    *shape, width = x.shape
    num_rows = math.prod(shape)
    product = functools.partial(
        jax.lax.dot_general, precision=matmul_precision(dtype), preferred_element_type=result
    )
    if not execution.few_rows_as_columns or not 1 < num_rows <= _FEW_ROWS:
        return product(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    padded = max(4, 1 << (num_rows - 1).bit_length())
    rows = jnp.pad(x.reshape(num_rows, width), [(0, padded - num_rows), (0, 0)])
    # The barrier keeps XLA from turning it into the other product.
    columns = jax.lax.optimization_barrier(product(weight, rows, (((1,), (1,)), ((), ()))))
    return columns[:, :num_rows].T.reshape(*shape, columns.shape[0])


def is_joined(name: str, lora: LoRA | None, execution: Execution) -> bool:
    """Whether `parameters.join_projections` made one weight of these projections."""
    return execution.joined_projections and not (lora and set(JOINED[name]) & set(lora.targets))
