"""The safetensors files of a model directory: which tensor lies where, and reading parts of it.

Either one model.safetensors, or several files and an index. With an index a tensor is read from
the file that the index names for it and from no other; the files lie beside the index.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from ssjax.errors import UserError
from ssjax.files.objects import show
from ssjax.files.reading import read_json_object
from ssjax.messages import say_once

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CHUNK = 2**24  # values that are compared at a time


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is; nothing of it has been read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors says it: F32, BF16, F16, ...

    @property
    def value_dtype(self) -> str:
        """The dtype of what is read."""
        return self.dtype

    def read(self, slices: tuple[slice, ...]) -> np.ndarray:
        """A part, with a slice for each axis."""
        # Opened anew each time: the pages of a file that stays mapped would add up to the size of
        # the whole model.
        with safetensors.safe_open(self.path, framework="numpy") as file:
            return file.get_slice(self.name)[slices]

    def read_whole(self) -> np.ndarray:
        """All of it."""
        with safetensors.safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(self.name)


def equal(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors have the same shape and values, a part of both in memory at a time."""
    if first.shape != second.shape:
        return False
    rows, *rest = first.shape
    step = max(1, _CHUNK // max(1, int(np.prod(rest))))
    for start in range(0, rows, step):
        part = (slice(start, min(start + step, rows)), *(slice(0, size) for size in rest))
        if not np.array_equal(_wide(first.read(part)), _wide(second.read(part))):
            return False
    return True


def _wide(array):
    """In a dtype that NumPy compares with every other; no value changes."""
    return array if array.dtype == np.float64 else array.astype(np.float32)


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a model directory by name, from the headers of its files.

    Raises:
      UserError: no such file, a damaged one, or an index that does not describe the files.
    """
    single, index = directory / _SINGLE, directory / INDEX
    if index.is_file():
        return _indexed_tensors(index)
    # Not every *.safetensors: adapters, or the same weights in another form, may lie there.
    if single.is_file():
        return _headers(single)
    raise UserError(
        f"{directory} holds no {_SINGLE}; convert other weights with transformers: "
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)"
    )


def _indexed_tensors(index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    directory = index.parent
    headers = {file: _headers(directory / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise UserError(
                f"{index}: tensor {name} is not in {file}, which is named for it; fetch the model "
                "again"
            )
    for file, tensors in headers.items():
        for name in tensors:
            if name not in weight_map:
                raise UserError(
                    f"{directory / file}: tensor {name} is not in {INDEX}; fetch the model again, "
                    "or load it with transformers and save_pretrained(NEW)"
                )
        others = [name for name in tensors if weight_map[name] != file]
        if others:
            say_once(
                f"{directory / file}: {len(others)} tensors, {others[0]} the first, are not read; "
                f"{INDEX} names other files for them"
            )
    if _SINGLE not in headers and (directory / _SINGLE).exists():
        say_once(f"{directory}: {_SINGLE} is not read; {INDEX} names other files")
    return {name: headers[file][name] for name, file in weight_map.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    """The file of each tensor, each of them beside the index."""
    values = read_json_object(index, "fetch the file again")
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f'{index}: "weight_map" is {show(weight_map)}, but must be an object with the name of '
            "a file for each tensor; fetch the file again"
        )
    roots = _roots(index.parent)
    checked = set()
    for name, file in weight_map.items():
        if isinstance(file, str) and file in checked:
            continue
        if not _is_plain_name(file):
            raise UserError(
                f"{index}: the file of tensor {name} is {show(file)}, but must be the name of a "
                "file beside the index; fetch the file again"
            )
        path = os.path.realpath(index.parent / file)
        if not any(Path(path).is_relative_to(root) for root in roots):
            raise UserError(
                f"{index}: {file} is a link to {path}, outside of the directory; put the file "
                "itself there"
            )
        checked.add(file)
    return weight_map


def _is_plain_name(file) -> bool:
    is_text = isinstance(file, str) and file.isprintable() and len(file) < 256
    return is_text and file not in ("", ".", "..") and not set(file) & {"/", "\\"}


def _roots(directory: Path) -> list[Path]:
    """Where files of the directory may really lie; the hub's cache links from its snapshots."""
    directory = directory.resolve()
    repository = directory.parent.parent
    if directory.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return [directory]
    return [directory, repository / "blobs", repository.parent / "blobs"]


def _headers(path: Path) -> dict[str, StoredTensor]:
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing; fetch the model again")
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                part = file.get_slice(name)
                tensors[name] = StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype())
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); fetch it again") from None
    return tensors
