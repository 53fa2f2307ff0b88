"""Hugging Face model directories: reading and writing safetensors without torch.

A directory holds config.json and one or more *.safetensors files; a GGUF file amounts to one, see
`gguf`. What the tensors are called and what the config means is said by `families`; here are files
and shapes. Of a file each device reads just what it needs, see `slices`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from ssjax import config as config_lib
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.gguf import is_gguf, read_header
from ssjax.files.reading import to_json
from ssjax.files.writing import new_file, write_atomic
from ssjax.messages import say_once
from ssjax.models.axes import param_shardings
from ssjax.models.parameters import Params, flatten, unflatten
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.parallel import distributed, partitioning
from ssjax.parallel.partitioning import to_host
from ssjax.weights import config_json, families, gguf, hub, published, tensor_files
from ssjax.weights.buffers import holds_what_is_computed
from ssjax.weights.families import Family
from ssjax.weights.slices import Place, check_dtype, reader
from ssjax.weights.tensor_files import StoredTensor
from ssjax.weights.text_part import text_tensors, text_values

# Bytes of one file when writing; a larger model is split into several, as published ones are.
_SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened model directory; nothing but headers has been read."""

    name: str  # as the user gave it
    directory: Path  # or a GGUF file
    revision: str  # commit of the hub's repository; empty: a directory of the user
    values: Mapping[str, Any]  # config.json
    family: Family
    tensors: Mapping[str, StoredTensor]

    def model_config(self, dtype: str) -> ModelConfig:
        """The sizes and mathematics of the model, validated, with this compute dtype.

        Raises:
          UserError: the config asks for something that we do not compute, naming the file.
        """
        return _model_config(self.name, self.directory, self.family, self.values, dtype)

    @property
    def stored_dtype(self) -> str:
        """The dtype that most of the bytes have."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + int(np.prod(tensor.shape))
        return max(sizes, key=sizes.get)


def open_source(name: str | Path) -> Source:
    """Opens a directory or a GGUF file, or fetches a repository of the hub and opens that.

    A head that is stored beside a config that ties it to the embedding is compared with it. If it
    is another one, `values` say that they are not tied, as transformers then has it.

    Args:
      name: a directory, a GGUF file (of a split model any part), or an id such as
        "facebook/opt-125m" or "facebook/opt-125m@main".

    Raises:
      UserError: not there, not readable, not a model that we know; one line.
    """
    name = str(name)
    place = hub.locate(name)
    values, family = _read_config(place.directory)
    if is_gguf(place.directory):
        tensors = gguf.find_tensors(read_header(place.directory))
        return Source(name, place.directory, place.revision, values, family, tensors)
    tensors = text_tensors(tensor_files.find_tensors(place.directory))
    if (place.directory / "adapter_config.json").exists():
        say_once(
            f"{place.directory}: the adapter of adapter_config.json is not applied; merge it into "
            "the weights with peft if it belongs to the model"
        )
    source = Source(name, place.directory, place.revision, values, family, tensors)
    head, table = _find(source, "lm_head"), _find(source, "embedder")
    if not head or not table or not source.model_config("float32").tie_embeddings:
        return source
    for tensor in (head, table):
        check_dtype(tensor)
    if tensor_files.equal(head, table):
        return source
    say_once(
        f"{place.directory}: {head.name} differs from {table.name}, so they are not tied as "
        'config.json says; set "tie_word_embeddings" to false there'
    )
    return dataclasses.replace(source, values=values | {"tie_word_embeddings": False})


def read_model_config(name: str, dtype: str) -> ModelConfig:
    """The config of a model from its config.json alone; no weights are needed.

    Neither is a network for models whose shape is part of the package and that were not fetched.

    Args:
      name: a directory or a hub id.
      dtype: compute dtype.

    Raises:
      UserError: as `open_source` and `Source.model_config`.
    """
    values = None if hub.is_here(name, "config.json") else published.find(name)
    if values is not None:
        say_once(
            f"{name}: its shape as ssjax has it, weights/published/{name}.json; give a directory "
            "to have that read"
        )
        values = text_values(values, name)
        return _model_config(name, Path(name), families.find_family(values, name), values, dtype)
    directory = hub.locate(name, ["config.json"]).directory
    values, family = _read_config(directory)
    return _model_config(name, directory, family, values, dtype)


def _read_config(directory: Path) -> tuple[dict[str, Any], Family]:
    values = config_json.read_values(directory)
    return values, families.find_family(values, str(config_json.place(directory)))


def _model_config(name, directory, family, values, dtype) -> ModelConfig:
    try:
        model = ModelConfig(pretrained=name, dtype=dtype, **family.model_fields(values))
        config_lib.validate_model(model)
    except UserError as error:
        raise UserError(f"{config_json.place(directory)}: {error}") from None
    return model


def read_params(
    source: Source,
    config: ModelConfig,
    num_stream_layers: int,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
) -> Params:
    """Reads the weights into the scanned form, without any stream parameter.

    Args:
      source: opened.
      config: of the source.
      num_stream_layers: Ns, where the layers are split into trunk and stream layers.
      dtype: of the arrays.
      mesh: each device reads its own slices only; None: the first device.

    Raises:
      UserError: a tensor is missing, has another shape or dtype, is not known, or holds a value
        that is not finite.
    """
    structs = _base_structs(config, num_stream_layers)
    shapes = {name: leaf.shape for name, leaf in flatten(structs).items()}
    num_trunk = config.num_layers - num_stream_layers
    places = {name: _places(source, config, name, shapes, num_trunk) for name in shapes}
    _check_nothing_left(source, config, places)
    shardings = flatten(param_shardings(structs, config, mesh or partitioning.one_device()))
    leaves = {}
    for name, leaf in flatten(structs).items():
        read = reader(places[name], leaf.shape, dtype)
        leaves[name] = jax.make_array_from_callback(leaf.shape, shardings[name], read)
    return unflatten(leaves)


def write_params(
    directory: str | Path, config: ModelConfig, params: Params, config_json: Mapping[str, Any]
) -> None:
    """Writes safetensors and config.json, the inverse of `read_params`.

    To be called by all processes: one tensor after the other comes together, and the first writes.

    Args:
      directory: made if missing; config.json comes last.
      config: of the model.
      params: scanned form, without stream parameters and LoRA; the dtype is kept.
      config_json: of the model, as Hugging Face's config.json.
    """
    directory = places.of(directory)
    directory.mkdir(parents=True, exist_ok=True)
    family = families.find_family(config_json, "config.json")
    shards = _shards(_stored_tensors(params, config, family))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else ["model.safetensors"]
    weight_map = {}
    for file_name, shard in zip(names, shards, strict=True):
        tensors = {name: array for name, make, _ in shard if (array := make()) is not None}
        weight_map |= dict.fromkeys(tensors, file_name)
        if tensors:
            save_tensors(directory / file_name, tensors)
    if not distributed.is_first():
        return
    if len(shards) > 1:
        size = sum(size for shard in shards for _, _, size in shard)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_atomic(directory / "model.safetensors.index.json", to_json(index))
    write_atomic(directory / "config.json", to_json(config_json))


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file of contiguous arrays, readable by all; whole or absent."""
    with new_file(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})


def llama_config_json(config: ModelConfig) -> dict[str, Any]:
    """A config.json for a model that was trained from random weights.

    Raises:
      UserError: the model is not of Llama's form.
    """
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }
    if config.max_positions:
        values["max_position_embeddings"] = config.max_positions
    family = families.find_family(values, "config.json")
    read_back = ModelConfig(
        pretrained=config.pretrained, dtype=config.dtype, **family.model_fields(values)
    )
    if read_back != config:
        raise UserError(
            "this model is not of Llama's form and has no Hugging Face config.json to go by; "
            "export it with --format orbax"
        )
    return values


def _base_structs(config: ModelConfig, num_stream_layers: int) -> Params:
    streams = StreamsConfig(num_streams=0, num_stream_layers=num_stream_layers)
    model = Transformer(config, streams, scan=True)
    return abstract_params(model)


def _table_name(name: str) -> tuple[str, str | None]:
    """Our parameter name -> (its name in a family's table, its stack)."""
    stack, _, rest = name.partition("/layers/")
    return (f"layer/{rest}", stack) if rest else (name, None)


def _own_name(table_name: str, stack: str | None) -> str:
    """The inverse of `_table_name`."""
    return f"{stack}/layers/{table_name.removeprefix('layer/')}" if stack else table_name


def _full_name(family: Family, name: str) -> str:
    """Of a tensor, with the prefix; the head stands beside the model that has it."""
    return name if name.startswith("lm_head") else family.prefix + name


def _find(source: Source, table_name: str, layer: int | None = None) -> StoredTensor | None:
    """The tensor that a parameter lies in; some files leave the prefix of the names out."""
    if table_name not in source.family.tensors:
        return None
    name = source.family.tensors[table_name].name.format(layer)
    return source.tensors.get(name) or source.tensors.get(source.family.prefix + name)


def _places(source: Source, config: ModelConfig, name: str, shapes, num_trunk: int) -> list[Place]:
    """Where a parameter comes from, one place a layer; a single one outside the stacks.

    Args:
      source, config: of the model.
      name: of the parameter.
      shapes: of all of them.
      num_trunk: layers of the trunk.
    """
    table_name, stack = _table_name(name)
    if table_name not in source.family.tensors:
        raise UserError(f"{source.directory}: {source.family.name} models have no {name}")
    tensor = source.family.tensors[table_name]
    begin = {"trunk": 0, "stream_layers": num_trunk, None: 0}[stack]
    own_shape, count = (shapes[name][1:], shapes[name][0]) if stack else (shapes[name], 1)
    rows = {part: shapes[_own_name(part, stack)][bool(stack)] for part in tensor.parts}
    before = list(rows)[: list(rows).index(table_name)] if rows else []
    first = sum(rows[part] for part in before)
    places = []
    for layer in range(begin, begin + count):
        stored = _find(source, table_name, layer)
        if stored is None and table_name == "embedder" and config.tie_embeddings:
            stored = _find(source, "lm_head")  # of two equal tensors the file holds this one
        if stored is None:
            missing = _full_name(source.family, tensor.name.format(layer))
            raise UserError(
                f"{source.directory}: tensor {missing} is missing; the files do not hold the "
                "whole model that config.json describes"
            )
        expected = (sum(rows.values()) or own_shape[0], *own_shape[1:])
        expected = expected[::-1] if tensor.transposed else expected
        if stored.shape != expected:
            raise UserError(
                f"{stored.path}: tensor {stored.name} has shape {list(stored.shape)}, but "
                f"config.json asks for {list(expected)}"
            )
        check_dtype(stored)
        places.append(Place(stored, tensor, first))
    return places


def _check_nothing_left(source, config, places) -> None:
    """A tensor that nothing reads must say no more than what is computed without it."""
    read = {place.stored.name for found in places.values() for place in found}
    head = _find(source, "lm_head") if config.tie_embeddings else None
    if head is not None:  # equal to the embedding, see `open_source`
        read.add(head.name)
    for name, tensor in source.tensors.items():
        if tensor.name in read:
            continue
        known = holds_what_is_computed(tensor, config)
        if known is None:
            raise UserError(
                f"{tensor.path}: tensor {name} has no place in a {source.family.name} model as "
                "config.json describes it"
            )
        if not known:
            raise UserError(
                f"{tensor.path}: tensor {name} is not what config.json says, and nothing else is "
                "computed; correct config.json, or take the tensor out of the file"
            )


def _stored_tensors(params: Params, config: ModelConfig, family: Family):
    """Yields (name, function that makes the array, bytes) in the order of the layers.

    All processes must call it; it gives the first its array, the others None.
    """
    leaves = flatten(params)
    num_trunk = _num_layers(leaves, "trunk")
    by_name: dict[str, list] = {}
    for name, leaf in leaves.items():
        table_name, stack = _table_name(name)
        tensor = family.tensors[table_name]
        first = num_trunk if stack == "stream_layers" else 0
        for row in range(leaf.shape[0] if stack else 1):
            stored = _full_name(family, tensor.name.format(first + row))
            place = tensor.parts.index(table_name) if tensor.parts else 0
            part = (place, tensor, leaf, row if stack else None)
            by_name.setdefault(stored, []).append(part)
    for stored in sorted(by_name, key=_natural):
        parts = sorted(by_name[stored], key=lambda part: part[0])

        def make(parts=parts):
            arrays = []
            for _, tensor, leaf, row in parts:
                array = np.asarray(to_host(leaf if row is None else leaf[row]))
                arrays.append(array.T if tensor.transposed else array)
            if not distributed.is_first():
                return None
            axis = -1 if parts[0][1].transposed else 0
            # save_file ignores strides: a transposed view would be written wrongly.
            return np.ascontiguousarray(np.concatenate(arrays, axis=axis))

        size = sum(
            (leaf.size // (1 if row is None else leaf.shape[0])) * leaf.dtype.itemsize
            for _, _, leaf, row in parts
        )
        yield stored, make, size


def _num_layers(leaves: Mapping[str, Any], stack: str) -> int:
    """Number of layers of a stack, 0 if it does not exist."""
    counts = [leaf.shape[0] for name, leaf in leaves.items() if name.startswith(f"{stack}/layers/")]
    return counts[0] if counts else 0


def _shards(tensors):
    shards, size = [[]], 0
    for entry in tensors:
        if size and size + entry[2] > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry[2]
    return shards


def _natural(name: str):
    return [int(part) if part.isdigit() else part for part in name.split(".")]
