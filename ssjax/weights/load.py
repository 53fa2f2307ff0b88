"""A model with its tokenizer and settings, read from any directory that holds one.

run directory        config.json, tokenizer files, checkpoints/ (trained leaves), base.json
model directory      config.json, tokenizer files, params/      (convert, export --format orbax)
Hugging Face         config.json, tokenizer files, *.safetensors; or a hub id
GGUF                 a file of that name, or any part of a split one
portable             ssjax.json, streams.safetensors, tokenizer files: beside Hugging Face
                     weights (export --format hf) or alone (export --format adapter)
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssjax.config import Config, ModelConfig
from ssjax.data.tokenizers.tokenizer import Tokenizer, open_tokenizer
from ssjax.errors import DamagedError, UserError
from ssjax.files import fetching, manifest, places
from ssjax.files.gguf import is_gguf
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic
from ssjax.models import lora
from ssjax.models.axes import param_shardings, placed
from ssjax.models.parameters import Params, check_finite, fingerprint, has_fingerprint, merge, split
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.parallel import partitioning
from ssjax.weights import adapter as adapter_lib
from ssjax.weights import base as base_lib
from ssjax.weights import checkpoint, config_json, huggingface, saved_steps
from ssjax.weights.base import Base, open_base, read_config
from ssjax.weights.families import Family


@dataclasses.dataclass(frozen=True)
class Trained:
    """Weights in the scanned form, with all that is needed to use them."""

    directory: Path
    step: int  # of the checkpoint; 0 where there is none
    config: Config
    tokenizer: Tokenizer
    trainable: Params  # float32; empty: an untouched base model
    frozen: Params  # in the compute dtype; empty in the full mode
    base_config: Mapping[str, Any] | None  # Hugging Face's config.json, if the model came from one

    @property
    def params(self) -> Params:
        """All leaves."""
        return merge(self.trainable, self.frozen)

    @property
    def family(self) -> Family | None:
        """Of the base; None for a model that was trained from random weights."""
        if self.base_config is None:
            return None
        return huggingface.families.find_family(self.base_config, "base_config.json")


def load_trained(
    directory: str | Path,
    checkpoint_name: str = "latest",
    *,
    adapter: str | Path | None = None,
    base: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """Reads a model from a directory of any of the kinds above.

    Args:
      directory: where; or a hub id.
      checkpoint_name: of a run: "latest", "best" (by checkpoint.best_by), or a step.
      adapter: a directory of `export --format adapter`; `directory` then gives the base weights.
      base: where the base weights of a run or an adapter are now; None: where they were.
      mesh: that the weights are divided over; None: the first device.

    Raises:
      UserError: nothing of the kind is there, or parts do not belong together.
    """
    path = places.of(directory)
    if adapter is not None:
        return _load_portable(places.of(adapter), base or _base_of(path), mesh)
    if not places.is_dir(path):
        return _load_base(directory, mesh)
    if adapter_lib.is_portable(path):
        has_weights = config_json.is_model_directory(path)
        return _load_portable(path, path if has_weights else base, mesh)
    if (path / "checkpoints").is_dir():
        return _load_run(path, checkpoint_name, base, mesh)
    if (path / "params").is_dir():
        return _load_model_directory(path, mesh)
    if not config_json.is_model_directory(path):
        read_config(path)  # says what is missing
        raise UserError(f"{path} holds no checkpoints; is it the workdir of a run?")
    return _load_base(directory, mesh)


def make_model(config: Config, tokenizer: Tokenizer) -> Transformer:
    """The scanned form of the model that a config describes.

    Raises:
      UserError: the tokenizer or the draft vocabulary has ids that the model has no embedding for.
    """
    size, vocab_size = config.model.vocab_size, tokenizer.vocab_size
    if config.model.pretrained:  # published tables are often padded beyond the tokenizer
        if vocab_size > size:
            raise UserError(
                f"the tokenizer has {vocab_size} ids, but {config.model.pretrained} has embeddings "
                f"for {size}; give the tokenizer that belongs to the model"
            )
    elif size not in (0, vocab_size):
        raise UserError(
            f"config: model.vocab_size {size} is not the tokenizer's {vocab_size}; leave it at 0 "
            "to take the tokenizer's"
        )
    else:
        size = vocab_size
    drafted = config.streams.draft_tokens
    if drafted and drafted[-1] >= size:
        raise UserError(
            f"config: streams.draft_tokens names the id {drafted[-1]}, but the model has {size} "
            "embeddings; leave it empty to take the most frequent tokens of the training targets"
        )
    # Where weights came from does not belong to the model: equal models compile once.
    model = dataclasses.replace(config.model, vocab_size=size, pretrained="")
    return Transformer(model, config.streams, True, config.adaptation)


def check_tokenizer(directory: Path, tokenizer: Tokenizer, about: Mapping[str, Any] | None) -> None:
    """Compares the tokenizer of a run directory with the one that its checkpoints were made with.

    Args:
      about: what a checkpoint says, `checkpoint.read_about`; None: nothing.

    Raises:
      DamagedError: they differ; names the files.
    """
    found, known = manifest.digests(tokenizer.files), (about or {}).get("tokenizer")
    if known is not None and found != known:
        names = sorted(n for n in found.keys() | known.keys() if found.get(n) != known.get(n))
        raise DamagedError(
            f"{directory}: {', '.join(names)} is not as the checkpoints were trained with; put the "
            "tokenizer files of the run back"
        )


def read_base(
    workdir: Path, config: Config, name: str | Path | None = None, mesh: Mesh | None = None
) -> tuple[Params, Base]:
    """The frozen weights of a run, in the compute dtype.

    The first time, their digest is kept in base.json; later they must have the same.

    Args:
      workdir: of the run.
      config: resolved.
      name: where the base is now; None: where the config says.
      mesh: that the weights are divided over; None: the first device.

    Raises:
      UserError: the base is not there, or its weights are others than at first.
    """
    base = open_base(name or config.model.pretrained, config.model.dtype)
    dtype = jnp.dtype(config.model.dtype)
    params = base.read_params(config.streams.num_stream_layers, dtype, mesh)
    found = fingerprint(params)  # by all processes, whoever writes it
    base_lib.keep_origin(workdir, base.name, base.revision, found)
    origin = read_json_object(workdir / "base.json")
    right = base_lib.title(str(origin.get("source")), origin.get("revision"))
    if origin.get("fingerprint") != found:
        _check_fingerprint(origin.get("fingerprint"), params, base.title, f", {right},")
    if base.config_json is not None and not (workdir / "base_config.json").exists():
        write_atomic(workdir / "base_config.json", to_json(base.config_json))
    return params, base


def _check_fingerprint(expected: str, params: Params, name: str, right: str = "") -> None:
    if expected and not has_fingerprint(params, str(expected)):
        raise UserError(
            f"{name}: these base weights are not the ones that the run was trained on (digest "
            f"{fingerprint(params)}, not {expected}); give the right ones{right} with --base DIR"
        )


def _load_run(path, checkpoint_name, base, mesh) -> Trained:
    config = read_config(path)
    tokenizer = open_tokenizer(path)
    directory = path / "checkpoints"
    step = saved_steps.find_step(directory, checkpoint_name, config.checkpoint.best_by)
    check_tokenizer(path, tokenizer, manifest.about(directory / str(step)))
    model = make_model(config, tokenizer)
    wanted, _ = lora.split_trainable(abstract_params(model), config.adaptation)
    wanted = placed(wanted, model.config, mesh)
    trainable = checkpoint.load_params(directory, step, wanted)
    frozen = {}
    if config.adaptation.mode != "full":
        frozen, _ = read_base(path, config, base, mesh)
    base_config = base_lib.read_base_config(path)
    return Trained(path, step, config, tokenizer, trainable, frozen, base_config)


def _load_model_directory(path, mesh) -> Trained:
    config = read_config(path)
    tokenizer = open_tokenizer(path)
    shapes = abstract_params(make_model(config, tokenizer))
    trainable, frozen = lora.split_trainable(shapes, config.adaptation)
    dtype = jnp.dtype(config.model.dtype)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), frozen)
    wanted = placed(merge(trainable, frozen), config.model, mesh)
    params = base_lib.load_params(path, wanted, unused={})
    trainable, frozen = lora.split_trainable(params, config.adaptation)
    base_config = base_lib.read_base_config(path)
    return Trained(path, 0, config, tokenizer, trainable, frozen, base_config)


def _load_base(name, mesh) -> Trained:
    """An untouched model: decoding is plain, prompts are used as they are."""
    base = open_base(name, ModelConfig().dtype)
    tokenizer = open_tokenizer(base.directory)
    config = untouched_config(base.model, tokenizer)
    dtype = jnp.dtype(base.model.dtype)
    params = base.read_params(config.streams.num_stream_layers, dtype, mesh)
    return Trained(base.directory, 0, config, tokenizer, {}, params, base.config_json)


def untouched_config(model: ModelConfig, tokenizer: Tokenizer) -> Config:
    """The config of a base model that nothing was trained on: no streams, bare prompts or chat."""
    config = Config()
    return dataclasses.replace(
        config,
        model=model,
        streams=dataclasses.replace(config.streams, num_streams=0, num_stream_layers=1),
        data=dataclasses.replace(config.data, task="chat" if tokenizer.chat_template else "pairs"),
    )


def _load_portable(place, base_name, mesh) -> Trained:
    path = fetching.on_disk(place, adapter_lib.FILES)
    config = adapter_lib.read_config(path)
    base = open_base(base_name or config.model.pretrained, config.model.dtype)
    values = base.config_json
    if values is None and config_json.is_model_directory(path):
        values = config_json.read_values(path)
    family = huggingface.families.find_family(values, str(path)) if values else None
    addition = adapter_lib.read_addition(path, family)
    check_finite(addition.leaves, str(path))
    full = config.adaptation.mode == "full"
    dtype = jnp.float32 if full else jnp.dtype(config.model.dtype)
    weights = base.read_params(config.streams.num_stream_layers, dtype, mesh)
    _check_fingerprint(addition.base_fingerprint, weights, base.name)
    tokenizer = open_tokenizer(path)
    model = make_model(config, tokenizer)
    _check_leaves(model, merge(addition.leaves, weights), path)
    mesh = mesh or partitioning.one_device()
    leaves = jax.device_put(addition.leaves, param_shardings(addition.leaves, config.model, mesh))
    if full:
        return Trained(place, 0, config, tokenizer, merge(leaves, weights), {}, values)
    return Trained(place, 0, config, tokenizer, leaves, weights, values)


def _check_leaves(model, params, path) -> None:
    def shapes(tree):
        return jax.tree.map(lambda x: x.shape, tree)

    if shapes(params) != shapes(abstract_params(model)):
        raise UserError(f"{path} does not fit these base weights: their sizes differ")


def _base_of(path: Path) -> str | Path:
    """Where the base weights are that a run or a model directory goes with."""
    if not (path / "checkpoints").is_dir():
        return path
    config = read_config(path)
    if config.adaptation.mode == "full":
        raise UserError(
            f"{path} trained all weights; export it with --format orbax and give that directory"
        )
    return config.model.pretrained


def holds_weights(directory: Path) -> bool:
    """Whether all weights of a model are there, not what a fine-tune adds to its base."""
    if is_gguf(directory):
        return True
    return (directory / "params").is_dir() or config_json.is_model_directory(directory)


def base_only(trained: Trained) -> Params:
    """The leaves of a model that its base has too."""
    return split(trained.params, lambda path: not lora.is_new(path))[0]
