"""The headers of GGUF files: what they say of a model, and where its tensors lie.

A header is metadata (key -> number, text or list) and a list of tensors; the data of the tensors
follows. A model may be split into `NAME-00001-of-0000N.gguf`, of which the first has the metadata.
Files are read as they are on x86 and ARM, little-endian, versions 2 and 3 of the format.

Read here and not by the package `gguf`, so that files of plain numbers need no package, the parts
of a split file are one model, and a damaged file ends in one line.
"""

import dataclasses
import glob
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssjax.errors import UserError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST = 2**24  # entries of a header: far beyond any model
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)

# The types of values by their number; a text and a list are read in other ways.
_SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"]))
_SCALARS |= {10: "<u8", 11: "<i8", 12: "<f8"}
_TEXT, _LIST = 8, 9

_AGAIN = "fetch it again"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file.

    Attributes:
      path: of the file.
      name: as the file has it.
      shape: as NumPy has it, the rows first; the file has it the other way round.
      kind: number of the form that the values are stored in.
      offset: bytes from the start of the file.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    """The headers of all parts of a model.

    Attributes:
      path: as the user gave it.
      metadata: texts, numbers, lists of texts and arrays of numbers by key.
      tensors: by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether a path names a GGUF file, there or not; a directory never does."""
    return str(path).lower().endswith(".gguf") and not os.path.isdir(path)


def name_of_parts(name: str) -> str:
    """A pattern for the names of all files of the model that a file belongs to."""
    match = _SPLIT.fullmatch(name)
    return (
        f"{glob.escape(match[1])}-*-of-{match[3]}.[gG][gG][uU][fF]" if match else glob.escape(name)
    )


def read_header(path: str | os.PathLike) -> GgufHeader:
    """Reads the headers of a file and, where it is a part of a model, of all other parts.

    Args:
      path: of a file; of a split model any part.

    Raises:
      UserError: missing, not GGUF, cut off, or parts that do not belong together; one line.
    """
    path = Path(path)
    match = _SPLIT.fullmatch(path.name)
    first, count = path, 1
    if match and int(match[3]) > 0:
        count = int(match[3])
        first = path.with_name(f"{match[1]}-00001-of-{match[3]}{path.suffix}")
    header = _read_file(first)
    told = header.metadata.get("split.count", 1)
    if told not in (0, 1, count) or (told in (0, 1) and count > 1):
        raise UserError(
            f"{first}: it says that the model is split into {told} files, but its name says "
            f"{count}; give the files the names that they were published with"
        )
    tensors = dict(header.tensors)
    for number in range(2, count + 1):
        part = path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}{path.suffix}")
        _add_part(tensors, _read_file(part), header, number)
    wanted = header.metadata.get("split.tensors.count", len(tensors)) if count > 1 else len(tensors)
    if wanted != len(tensors):
        raise UserError(
            f"{first}: the model has {wanted} tensors, but its {count} files hold {len(tensors)}; "
            "fetch all parts of one model"
        )
    return GgufHeader(path, header.metadata, tensors)


def _add_part(tensors: dict, part: GgufHeader, first: GgufHeader, number: int) -> None:
    """Adds the tensors of a later part, which must be one of the same model."""
    same = all(
        part.metadata.get(key, first.metadata.get(key)) == first.metadata.get(key)
        for key in ("split.count", "split.tensors.count", "general.architecture", "general.name")
    )
    twice = tensors.keys() & part.tensors.keys()
    if not same or twice or part.metadata.get("split.no") != number - 1:
        raise UserError(
            f"{part.path}: it is not part {number} of the model of {first.path.name}; fetch all "
            "parts of one model"
        )
    tensors |= part.tensors


def _read_file(path: Path) -> GgufHeader:
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing; give a GGUF file that is there, with all its parts")
    try:
        if os.path.getsize(path) < len(_MAGIC):
            raise UserError(f"{path}: not a GGUF file; {_AGAIN}")
        data = np.memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    cursor = _Cursor(data, path)
    if cursor.take(4) != _MAGIC:
        raise UserError(f"{path}: not a GGUF file; {_AGAIN}")
    version = cursor.number("<u4")
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise UserError(
            f"{path}: version {version} of GGUF (or another order of bytes), and only {known} "
            "are read; convert the model anew"
        )
    num_tensors, num_keys = cursor.count(), cursor.count()
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text()
        if key in metadata:
            raise cursor.damaged(f"the key {key[:60]!r} stands there twice")
        metadata[key] = cursor.value(cursor.number("<u4"))
    return GgufHeader(path, metadata, _read_tensors(cursor, num_tensors, metadata))


def _read_tensors(cursor: "_Cursor", count: int, metadata: Mapping[str, Any]):
    found = {}
    for _ in range(count):
        name, rank = cursor.text(), cursor.number("<u4")
        if name in found or rank > 4:
            raise cursor.damaged(f"tensor {name[:60]!r} stands there twice or has no shape")
        shape = tuple(cursor.number("<u8") for _ in range(rank))[::-1]
        found[name] = (shape, cursor.number("<u4"), cursor.number("<u8"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _MOST:
        raise cursor.damaged(f"general.alignment is {alignment!r:.60}")
    start = -(-cursor.at // alignment) * alignment
    return {
        name: TensorInfo(cursor.path, name, shape, kind, start + offset)
        for name, (shape, kind, offset) in found.items()
    }


class _Cursor:
    """Reads values one after another; says where a file ends too early."""

    def __init__(self, data: np.ndarray, path: Path):
        self._data, self.path, self.at = memoryview(data), path, 0

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: damaged GGUF header ({what}); {_AGAIN}")

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise UserError(f"{self.path}: the file is cut off inside its header; {_AGAIN}")
        self.at = end
        return self._data[end - size : end].tobytes()

    def number(self, dtype: str) -> Any:
        dtype = np.dtype(dtype)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def length(self) -> int:
        return struct.unpack("<Q", self.take(8))[0]

    def count(self) -> int:
        found = self.length()
        if found > _MOST:
            raise self.damaged(f"{found} entries")
        return found

    def text(self) -> str:
        content = self.take(self.length())
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self.damaged("a text that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """A value of this type; the shortest decimal stands for a number of 32 bits."""
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, size = self.number("<u4"), self.count()
            if inner in _SCALARS:
                dtype = np.dtype(_SCALARS[inner])
                return np.frombuffer(self.take(size * dtype.itemsize), dtype)
            if inner == _LIST:
                raise self.damaged("a list of lists")
            return [self.value(inner) for _ in range(size)]
        if kind not in _SCALARS:
            raise self.damaged(f"a value of the type {kind}")
        value = self.number(_SCALARS[kind])
        return float(str(np.float32(value))) if _SCALARS[kind] == "<f4" else value
