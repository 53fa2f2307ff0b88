"""Tensors of GGUF files as those of Hugging Face: values, order of rows, orientation.

F32, F16, BF16 and F64 are read as they are. Any other form is dequantised by the package `gguf`,
the extra `gguf`, row by row as they are asked for.
"""

import dataclasses
import functools
import math
import os

import ml_dtypes
import numpy as np

from ssjax.errors import UserError
from ssjax.files.gguf import TensorInfo
from ssjax.weights.tensor_files import StoredTensor

# Number of the form -> what safetensors calls it.
_PLAIN = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Form:
    """How values are stored.

    Attributes:
      number: in the file.
      name: "Q4_K", "F16".
      block: values that are stored together, all of one row.
      block_bytes: what they take.
    """

    number: int
    name: str
    block: int
    block_bytes: int


@dataclasses.dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A tensor of a GGUF file with the name, shape and values that Hugging Face gives it.

    Attributes:
      offset: bytes from the start of the file.
      form: of the stored values.
      heads: the rows of each of so many heads are stored in pairs, channel i beside channel
        i + width / 2; 0: in order.
      transposed: stored [columns, rows].
      added: what was added to each value before it was stored.
    """

    offset: int
    form: Form
    heads: int = 0
    transposed: bool = False
    added: float = 0.0

    @property
    def value_dtype(self) -> str:
        return self.dtype if self.dtype in _DTYPES else "F32"

    def read(self, slices: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(size)[:2] for part, size in zip(slices, self.shape, strict=True)]
        if self.transposed:
            return self._read(bounds[::-1]).T
        return self._read(bounds)

    def read_whole(self) -> np.ndarray:
        return self.read(tuple(slice(0, size) for size in self.shape))

    def _read(self, bounds):
        """[start, stop) of each axis as stored, but with the rows in order."""
        if len(bounds) == 1:
            values = self._rows(0, 1)[0]
            values = values[_order(len(values), self.heads)]
        else:
            (start, stop), (left, right) = bounds
            width = self.shape[0] // self.heads if self.heads else 1
            first, last = start // width * width, -(-stop // width) * width
            values = self._rows(first, last)[:, left:right]
            if self.heads:
                values = values[_order(last - first, (last - first) // width)]
            bounds = [(start - first, stop - first)]
        values = values[slice(*bounds[0])]
        return values.astype(np.float32) - np.float32(self.added) if self.added else values

    def _rows(self, start: int, stop: int):
        """Rows [start, stop) as they are stored; a vector is one row."""
        stored = self.shape[::-1] if self.transposed else self.shape
        size = stored[-1] // self.form.block * self.form.block_bytes
        data = np.fromfile(
            self.path, np.uint8, (stop - start) * size, offset=self.offset + start * size
        ).reshape(stop - start, size)
        if self.dtype in _DTYPES:
            return data.view(_DTYPES[self.dtype])
        package = _package(self.path)
        return package.quants.dequantize(data, package.GGMLQuantizationType(self.form.number))


def _order(rows: int, heads: int) -> np.ndarray:
    """Where each row of Hugging Face's order stands among rows stored in pairs."""
    if not heads:
        return np.arange(rows)
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def stored_tensor(info: TensorInfo, name: str, **changes) -> GgufTensor:
    """A tensor under its name in Hugging Face's files, its place checked.

    Args:
      info: of the header.
      name: there.
      changes: fields of `GgufTensor`: heads, transposed, added.

    Raises:
      UserError: a form that is not read, rows that it cannot hold, or data beyond the file's end.
    """
    form = _form(info)
    shape = info.shape or (1,)
    if shape[-1] % form.block:
        raise UserError(
            f"{info.path}: tensor {info.name} has rows of {shape[-1]} values, which {form.name} "
            f"cannot hold in blocks of {form.block}; fetch the file again"
        )
    size = math.prod(shape) // form.block * form.block_bytes
    if info.offset + size > os.path.getsize(info.path):
        raise UserError(
            f"{info.path}: the file is cut off, tensor {info.name} lies beyond its end; fetch it "
            "again"
        )
    shape = shape[::-1] if changes.get("transposed") else shape
    return GgufTensor(info.path, name, shape, form.name, info.offset, form, **changes)


def _form(info: TensorInfo) -> Form:
    if info.kind in _PLAIN:
        name = _PLAIN[info.kind]
        return Form(info.kind, name, 1, np.dtype(_DTYPES[name]).itemsize)
    form = _quantised_form(info.kind, info.path)
    if form is None:
        raise UserError(
            f"{info.path}: tensor {info.name} is stored in a form of GGUF that is not known "
            f"(number {info.kind}); take a file in another one, such as Q4_K_M or Q8_0"
        )
    return form


@functools.cache
def _quantised_form(number: int, path) -> Form | None:
    """A form that the package dequantises; None: it does not."""
    package = _package(path)
    try:
        kind = package.GGMLQuantizationType(number)
        block, size = package.GGML_QUANT_SIZES[kind]
        package.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return Form(number, kind.name, block, size)


def _package(path):
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise UserError(
            f"{path}: quantised GGUF weights need the package gguf; run pip install 'ssjax[gguf]'"
        ) from None
    return gguf
