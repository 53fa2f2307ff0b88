"""What a device reads of a parameter: slices of tensors in files, cast and checked.

Nothing else of a file is read, and one layer's tensor at a time is held beside the arrays being
filled.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ssjax.errors import UserError
from ssjax.weights import families
from ssjax.weights.naming import Tensor
from ssjax.weights.tensor_files import StoredTensor

# The stored dtypes that are read.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_CHUNK = 2**22  # values that are checked at a time


@dataclasses.dataclass(frozen=True)
class Place:
    """One parameter of one layer in a file."""

    stored: StoredTensor
    tensor: Tensor
    first: int  # of its rows there, behind those of other parameters


def check_dtype(stored: StoredTensor) -> None:
    """Raises: UserError: it is stored in a form that is not read."""
    if stored.value_dtype not in DTYPES:
        raise UserError(
            f"{stored.path}: tensor {stored.name} is stored as {stored.dtype}, and only "
            f"{', '.join(DTYPES)} are read; {families.DEQUANTISE}"
        )


def reader(places: Sequence[Place], shape: tuple[int, ...], dtype: jnp.dtype) -> Callable:
    """A callback for `jax.make_array_from_callback`: index into the whole leaf -> that part."""
    stacked = len(shape) > len(places[0].stored.shape)

    def read(index):
        bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        own = bounds[1:] if stacked else bounds
        layers = range(*bounds[0]) if stacked else range(1)
        out = _empty_aligned([stop - start for start, stop in bounds], dtype)
        for row, layer in enumerate(layers):
            part = _read_part(places[layer], shape[1:] if stacked else shape, own)
            target = out[row] if stacked else out
            with np.errstate(over="ignore", invalid="ignore"):  # found below
                target[...] = part
            if not _all_finite(target):
                raise _not_finite(places[layer].stored, part, target)
        return out

    return read


def _all_finite(array: np.ndarray) -> bool:
    """Whether no value of a contiguous array is NaN or infinite, a part of it at a time."""
    values = array.reshape(-1)
    steps = range(0, values.size, _CHUNK)
    return all(np.isfinite(values[start : start + _CHUNK]).all() for start in steps)


def _not_finite(stored: StoredTensor, part, cast) -> UserError:
    """The error for a tensor of which this part is not finite, as stored or once cast."""
    wrong = ~np.isfinite(cast.astype(np.float32))
    value = part.astype(np.float64)[wrong][0]
    if np.isfinite(value):
        return UserError(
            f"{stored.path}: tensor {stored.name} holds {value:g}, which {cast.dtype} cannot hold; "
            "scale the model, or take another one"
        )
    return UserError(
        f"{stored.path}: tensor {stored.name} holds {value:g}, which is not a finite number; the "
        "file is damaged or its training diverged, take another one"
    )


def _empty_aligned(shape, dtype):
    """An uninitialised array that JAX on CPU takes over as it is; others it copies.

    With copies, reading a model of 1.56 GB needed 576 MB beyond it.
    """
    alignment, size = 64, int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size].view(dtype).reshape(shape)


def _read_part(place: Place, shape, bounds):
    """Reads [start, stop) of every axis of one parameter of one layer."""
    tensor, bounds = place.tensor, list(bounds)
    bounds[0] = (place.first + bounds[0][0], place.first + bounds[0][1])
    flipped = tensor.transposed and len(shape) == 2
    slices = tuple(slice(*bound) for bound in (bounds[::-1] if flipped else bounds))
    part = place.stored.read(slices)
    return part.T if flipped else part
