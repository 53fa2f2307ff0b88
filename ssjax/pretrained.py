"""Base models: where the weights of a fine-tune come from.

A base is a Hugging Face directory (or hub id), or a directory that `ssjax.convert` or
`ssjax.export --format orbax` wrote:

    config.json        our resolved config
    params/            Orbax: the whole parameter tree, scanned form
    base_config.json   config.json of the Hugging Face model that it came from, if it did
    tokenizer files
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssjax import config as config_lib
from ssjax import huggingface
from ssjax.config import Config, ModelConfig
from ssjax.errors import UserError
from ssjax.models import lora
from ssjax.models.axes import placed
from ssjax.models.parameters import Params, resplit_layers, split
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Base:
    """An opened base model; weights are read on demand."""

    name: str  # as the user gave it
    directory: Path  # tokenizer files lie there
    model: ModelConfig
    config_json: Mapping[str, Any] | None  # of Hugging Face, for exporting
    source: huggingface.Source | None  # None: our own directory

    def read_params(
        self, num_stream_layers: int, dtype: jnp.dtype, mesh: Mesh | None = None
    ) -> Params:
        """The weights in the scanned form, without any stream parameter.

        Args:
          num_stream_layers: Ns, where the layers are split.
          dtype: of the arrays.
          mesh: each device gets its own slices only; None: the first device.

        Raises:
          UserError: the files do not hold the model that their config describes.
        """
        if self.source is not None:
            return huggingface.read_params(self.source, self.model, num_stream_layers, dtype, mesh)
        config = read_config(self.directory)
        model = Transformer(self.model, config.streams, True, config.adaptation)
        params, _ = split(abstract_params(model), lambda path: not lora.is_new(path))
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
        params = placed(params, self.model, mesh)
        params = checkpoint.load_model(self.directory / "params", params)
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
    directory = Path(name)
    if (directory / "params").is_dir():
        model = dataclasses.replace(read_config(directory).model, pretrained=name, dtype=dtype)
        config_json = read_base_config(directory)
        return Base(name, directory, model, config_json, None)
    if (directory / "checkpoints").is_dir():
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
    directory = Path(name)
    if (directory / "params").is_dir():
        return open_base(name, dtype).model
    values = huggingface.read_config_json(directory) if directory.is_dir() else None
    values = values or huggingface.fetch_config_json(name)
    fields = huggingface.families.find_family(values, name).model_fields(values)
    return ModelConfig(pretrained=name, dtype=dtype, **fields)


def resolve(config: Config, base: Base | None) -> Config:
    """The config with the sizes of its base, checked against them.

    Raises:
      UserError: the streams do not fit the model.
    """
    if base is not None:
        config = dataclasses.replace(config, model=base.model)
    config_lib.check_stream_layers(config)
    return config


def read_config(directory: Path) -> Config:
    """Reads config.json of a run or model directory of ours.

    Raises:
      UserError: missing, not JSON, or not a config of this version.
    """
    path = directory / "config.json"
    try:
        return config_lib.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; give the workdir of a run made by python -m ssjax.train"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None


def read_base_config(directory: Path) -> dict[str, Any] | None:
    """The Hugging Face config.json that a directory of ours keeps, None if it has none."""
    path = directory / "base_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
