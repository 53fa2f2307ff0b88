"""Base models: where the weights of a fine-tune come from.

A base is a Hugging Face directory (or hub id), or a directory that `ssjax.convert` or
`ssjax.export --format orbax` wrote:

    config.json        our resolved config
    params/            Orbax: the whole parameter tree, scanned form
    base_config.json   config.json of the Hugging Face model that it came from, if it did
    base.json          which model that was: name, revision on the hub, digest of the weights
    tokenizer files
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssjax import config as config_lib
from ssjax.config import Config, ModelConfig
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic
from ssjax.models import lora
from ssjax.models.axes import placed
from ssjax.models.parameters import Params, check_finite, flatten, resplit_layers, split
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.weights import checkpoint, huggingface


@dataclasses.dataclass(frozen=True)
class Base:
    """An opened base model; weights are read on demand."""

    name: str  # as the user gave it
    directory: Path  # tokenizer files lie there, of a model in a bucket a copy of them
    model: ModelConfig
    config_json: Mapping[str, Any] | None  # of Hugging Face, for exporting
    source: huggingface.Source | None  # None: our own directory

    @property
    def revision(self) -> str:
        """The commit of the hub's repository; empty: a directory of the user."""
        return "" if self.source is None else self.source.revision

    @property
    def title(self) -> str:
        """The name with the revision."""
        return title(self.name, self.revision)

    def read_params(
        self, num_stream_layers: int, dtype: jnp.dtype, mesh: Mesh | None = None
    ) -> Params:
        """The weights in the scanned form, without any stream parameter.

        Args:
          num_stream_layers: Ns, where the layers are split.
          dtype: of the arrays.
          mesh: each device gets its own slices only; None: the first device.

        Raises:
          UserError: the files do not hold the model that their config describes, or a value
            that is not finite.
        """
        if self.source is not None:
            return huggingface.read_params(self.source, self.model, num_stream_layers, dtype, mesh)
        config = read_config(self.directory)
        model = Transformer(self.model, config.streams, True, config.adaptation)
        params, new = split(abstract_params(model), lambda path: not lora.is_new(path))
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
        params = placed(params, self.model, mesh)
        params = load_params(self.directory, params, unused=new)
        if config.streams.num_stream_layers != num_stream_layers:
            params = resplit_layers(params, num_stream_layers)
        return params


def open_base(name: str | Path, dtype: str) -> Base:
    """Opens a base model without reading its weights.

    Args:
      name: a directory or a hub id.
      dtype: compute dtype.

    Raises:
      UserError: none there, or not one that we know.
    """
    name = str(name)
    directory = places.of(name)
    if _is_ours(directory):
        model = dataclasses.replace(read_config(directory).model, pretrained=name, dtype=dtype)
        config_json = read_base_config(directory)
        return Base(name, directory, model, config_json, None)
    if places.is_dir(directory / "checkpoints"):
        raise UserError(
            f"{name} is the run directory of a training; make a base of it with "
            f"python -m ssjax.export --workdir {name} --format orbax --target DIR"
        )
    source = huggingface.open_source(name)
    return Base(name, source.directory, source.model_config(dtype), dict(source.values), source)


def read_model_config(name: str, dtype: str) -> ModelConfig:
    """The sizes and mathematics of a base model from its config.json alone; no weights needed.

    Args:
      name: a directory or a hub id.
      dtype: compute dtype.

    Raises:
      UserError: none there, or not one that we know.
    """
    if _is_ours(places.of(name)):
        return open_base(name, dtype).model
    return huggingface.read_model_config(name, dtype)


def _is_ours(directory: Path) -> bool:
    return places.is_dir(directory / "params")


def title(name: str, revision: str) -> str:
    """A model's name with its revision on the hub, if it has one."""
    return f"{name.partition('@')[0]}@{revision}" if revision else name


def keep_origin(directory: Path, name: str, revision: str, fingerprint: str) -> None:
    """Writes base.json, unless it is there: where the weights of a directory of ours come from.

    Args:
      directory: a run, or a model of ours.
      name: of the source, as the user gave it.
      revision: its commit on the hub; empty: none.
      fingerprint: of the weights as they were read.
    """
    path = directory / "base.json"
    if not path.exists():
        origin = {"source": name, "revision": revision, "fingerprint": fingerprint}
        write_atomic(path, to_json(origin))


def resolve(config: Config, base: Base | None) -> Config:
    """The config with the sizes of its base, checked against them.

    Raises:
      UserError: the streams do not fit the model.
    """
    if base is not None:
        config = dataclasses.replace(config, model=base.model)
    config_lib.check_stream_layers(config)
    return config


def load_params(directory: Path, params: Params, unused: Params) -> Params:
    """Reads params/ of a model directory of ours, all leaves or those of the base.

    Args:
      directory: which has it.
      params: shape structs of the leaves wanted, with their shardings.
      unused: the leaves of the model that may be there beside them.

    Raises:
      UserError: the leaves are not there, there are others, or a value is not finite.
    """
    path = directory / "params"
    loaded = checkpoint.load_model(path, params)
    extra = checkpoint.stored_names(path) - set(flatten(params)) - set(flatten(unused))
    if extra:
        raise UserError(
            f"{path}: parameter {min(extra)} has no place in the model that "
            f"{directory / 'config.json'} describes; write the directory again"
        )
    check_finite(loaded, str(path))
    return loaded


def read_config(directory: Path) -> Config:
    """Reads config.json of a run or model directory of ours.

    Raises:
      UserError: missing, not JSON, or not a config of this version.
    """
    path = directory / "config.json"
    values = read_json_object(path, "give the workdir of a run made by python -m ssjax.train")
    return config_lib.from_saved(values)


def read_base_config(directory: Path) -> dict[str, Any] | None:
    """The Hugging Face config.json that a directory of ours keeps, None if it has none.

    Raises:
      UserError: it cannot be read.
    """
    path = directory / "base_config.json"
    return read_json_object(path) if path.is_file() else None
