"""Hugging Face model directories: reading and writing safetensors without torch.

A directory holds config.json and one or more *.safetensors files. What the tensors are called
and what the config means is said by `models.families`; here are files, shapes and slices.
Reading asks the file for just the slices that each device needs, and holds one layer's tensor
at a time beside the arrays being filled.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.sharding import Mesh
from safetensors.numpy import save_file

from ssjax import config as config_lib
from ssjax import partitioning
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.errors import UserError
from ssjax.files import write_atomic
from ssjax.models import families
from ssjax.models.axes import param_shardings
from ssjax.models.families import Family, Tensor
from ssjax.models.parameters import Params, flatten, unflatten
from ssjax.models.transformer import Transformer, abstract_params

# Buffers that old files carry beside the weights.
_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
_HUB_FILES = ("model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
# Bytes of one file when writing; a larger model is split into several, as published ones are.
_SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors says it: F32, BF16, F16, ...


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened model directory; nothing but headers has been read."""

    name: str  # as the user gave it
    directory: Path
    values: Mapping[str, Any]  # config.json
    family: Family
    tensors: Mapping[str, StoredTensor]

    def model_config(self, dtype: str) -> ModelConfig:
        """The sizes and mathematics of the model, validated, with this compute dtype.

        Raises:
          UserError: the config asks for something that we do not compute, naming the file.
        """
        where = self.directory / "config.json"
        try:
            fields = self.family.model_fields(self.values)
            model = ModelConfig(pretrained=self.name, dtype=dtype, **fields)
            config_lib.validate_model(model)
        except (UserError, KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{where}: {problem}") from None
        return model

    @property
    def stored_dtype(self) -> str:
        """The dtype that most of the bytes have."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + int(np.prod(tensor.shape))
        return max(sizes, key=sizes.get)


def open_source(name: str | Path) -> Source:
    """Opens a directory, or fetches a repository of the Hugging Face hub and opens that.

    Args:
      name: a directory, or an id such as "facebook/opt-125m".

    Raises:
      UserError: not there, not readable, not a model that we know; one line.
    """
    name = str(name)
    directory = Path(name) if Path(name).exists() else _fetch(name)
    values = read_config_json(directory)
    family = families.find_family(values, str(directory / "config.json"))
    return Source(name, directory, values, family, _tensors_of(directory))


def read_config_json(directory: Path) -> dict[str, Any]:
    """The config.json of a model directory. Raises: UserError: missing or not JSON."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a Hugging Face model directory or a hub id"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


def is_model_directory(directory: Path) -> bool:
    """Whether config.json there is one of Hugging Face."""
    if not (directory / "config.json").is_file():
        return False
    values = read_config_json(directory)
    return "architectures" in values or "model_type" in values


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
      UserError: a tensor is missing, has another shape, or is not known.
    """
    structs = _base_structs(config, num_stream_layers)
    places = {
        name: _places(source, name, leaf.shape, config.num_layers - num_stream_layers)
        for name, leaf in flatten(structs).items()
    }
    _check_nothing_left(source, config, places)
    shardings = flatten(param_shardings(structs, config, mesh or partitioning.one_device()))
    leaves = {}
    for name, leaf in flatten(structs).items():
        read = _reader(places[name], leaf.shape, dtype)
        leaves[name] = jax.make_array_from_callback(leaf.shape, shardings[name], read)
    return unflatten(leaves)


def write_params(
    directory: str | Path, config: ModelConfig, params: Params, config_json: Mapping[str, Any]
) -> None:
    """Writes safetensors and config.json, the inverse of `read_params`.

    Args:
      directory: made if missing.
      config: of the model.
      params: scanned form, without stream parameters and LoRA; the dtype is kept.
      config_json: of the model, as Hugging Face's config.json.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    family = families.find_family(config_json, "config.json")
    shards = _shards(_stored_tensors(params, config, family))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else ["model.safetensors"]
    weight_map = {}
    for file_name, shard in zip(names, shards, strict=True):
        tensors = {name: make() for name, make, _ in shard}
        temporary = directory / f".{file_name}"
        save_tensors(temporary, tensors)
        temporary.replace(directory / file_name)
        weight_map |= dict.fromkeys(tensors, file_name)
    if len(shards) > 1:
        size = sum(size for shard in shards for _, _, size in shard)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_atomic(directory / "model.safetensors.index.json", _json(index))
    write_atomic(directory / "config.json", _json(config_json))


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file of contiguous arrays, readable by all."""
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors keeps others out


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


def _json(values) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def fetch_config_json(name: str) -> dict[str, Any]:
    """Downloads config.json alone of a hub repository."""
    return read_config_json(_fetch(name, ["config.json"]))


def _fetch(name: str, patterns: Sequence[str] = _HUB_FILES) -> Path:
    """Downloads files of a hub repository; by default config, tokenizer and weights."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"{name} is neither a directory nor a hub id such as facebook/opt-125m")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises some twenty kinds, of four libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot fetch {name!r} from the Hugging Face hub: {reason[:300]}; check the id "
            "and the network (HF_TOKEN for gated models), or give a directory"
        ) from None


def _tensors_of(directory: Path) -> dict[str, StoredTensor]:
    """The headers of all safetensors files."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{index}: not an index of tensors; fetch the file again") from None
        paths = [directory / file for file in files]
    else:
        # Not every *.safetensors: adapters, or the same weights in another form, may lie there.
        paths = [path for path in [directory / "model.safetensors"] if path.exists()]
    if not paths:
        raise UserError(
            f"{directory} holds no model.safetensors; convert other weights with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)"
        )
    tensors = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118, not a dict
                    part = file.get_slice(name)
                    shape = tuple(part.get_shape())
                    tensors[name] = StoredTensor(path, shape, part.get_dtype())
        except FileNotFoundError:
            raise UserError(f"{path} is missing; fetch the model again") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({error}); fetch it again") from None
    return tensors


def _base_structs(config: ModelConfig, num_stream_layers: int) -> Params:
    streams = StreamsConfig(num_streams=0, num_stream_layers=num_stream_layers)
    model = Transformer(config, streams, scan=True)
    return abstract_params(model)


@dataclasses.dataclass(frozen=True)
class _Place:
    """One parameter of one layer in a file."""

    stored: StoredTensor
    name: str
    tensor: Tensor


def _table_name(name: str) -> tuple[str, str | None]:
    """Our parameter name -> (its name in a family's table, its stack)."""
    stack, _, rest = name.partition("/layers/")
    return (f"layer/{rest}", stack) if rest else (name, None)


def _places(source: Source, name: str, shape, num_trunk: int) -> list[_Place]:
    """Where a parameter comes from, one place a layer; a single one outside the stacks."""
    table_name, stack = _table_name(name)
    if table_name not in source.family.tensors:
        raise UserError(f"{source.directory}: {source.family.name} models have no {name}")
    tensor = source.family.tensors[table_name]
    first = {"trunk": 0, "stream_layers": num_trunk, None: 0}[stack]
    own_shape, count = (shape[1:], shape[0]) if stack else (shape, 1)
    places = []
    for layer in range(first, first + count):
        wanted = tensor.name.format(layer)
        found = [n for n in (wanted, source.family.prefix + wanted) if n in source.tensors]
        if not found:
            raise UserError(
                f"{source.directory}: tensor {source.family.prefix}{wanted} is missing; the files "
                "do not hold the whole model that config.json describes"
            )
        stored = source.tensors[found[0]]
        expected = (tensor.num_parts * own_shape[0], *own_shape[1:])
        expected = expected[::-1] if tensor.transposed else expected
        if stored.shape != expected:
            raise UserError(
                f"{stored.path}: tensor {found[0]} has shape {list(stored.shape)}, but config.json "
                f"asks for {list(expected)}"
            )
        places.append(_Place(stored, found[0], tensor))
    return places


def _check_nothing_left(source, config, places) -> None:
    """A tensor that nothing reads would be mathematics that we leave out."""
    read = {place.name for found in places.values() for place in found}
    tied = ("lm_head.weight",) if config.tie_embeddings else ()
    for name in source.tensors:
        if name not in read and not name.endswith((*_BUFFERS, *tied)):
            raise UserError(
                f"{source.tensors[name].path}: tensor {name} has no place in a "
                f"{source.family.name} model as config.json describes it"
            )


def _reader(places, shape, dtype):
    """A callback for `jax.make_array_from_callback`: index into the whole leaf -> that part."""
    stacked = len(shape) > len(places[0].stored.shape)

    def read(index):
        bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        own = bounds[1:] if stacked else bounds
        layers = range(*bounds[0]) if stacked else range(1)
        out = _empty_aligned([stop - start for start, stop in bounds], dtype)
        for row, layer in enumerate(layers):
            part = _read_part(places[layer], shape[1:] if stacked else shape, own)
            if stacked:
                out[row] = part
            else:
                out[...] = part
        return out

    return read


def _empty_aligned(shape, dtype):
    """An uninitialised array that JAX on CPU takes over as it is; others it copies.

    With copies, reading a model of 1.56 GB needed 576 MB beyond it.
    """
    alignment, size = 64, int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size].view(dtype).reshape(shape)


def _read_part(place: _Place, shape, bounds):
    """Reads [start, stop) of every axis of one parameter of one layer."""
    tensor, bounds = place.tensor, list(bounds)
    first = tensor.part * shape[0]
    bounds[0] = (first + bounds[0][0], first + bounds[0][1])
    flipped = tensor.transposed and len(shape) == 2
    slices = tuple(slice(*bound) for bound in (bounds[::-1] if flipped else bounds))
    # Opened anew for each tensor: the pages of a file that stays mapped would add up to the
    # size of the whole model.
    with safetensors.safe_open(place.stored.path, framework="numpy") as file:
        part = file.get_slice(place.name)[slices]
    return part.T if flipped else part


def _stored_tensors(params: Params, config: ModelConfig, family: Family):
    """Yields (name, function that makes the array, bytes) in the order of the layers."""
    leaves = flatten(params)
    num_trunk = _num_layers(leaves, "trunk")
    by_name: dict[str, list] = {}
    for name, leaf in leaves.items():
        table_name, stack = _table_name(name)
        tensor = family.tensors[table_name]
        first = num_trunk if stack == "stream_layers" else 0
        for row in range(leaf.shape[0] if stack else 1):
            stored = tensor.name.format(first + row)
            if not stored.startswith("lm_head"):
                stored = family.prefix + stored
            by_name.setdefault(stored, []).append((tensor, leaf, row if stack else None))
    for stored in sorted(by_name, key=_natural):
        parts = sorted(by_name[stored], key=lambda part: part[0].part)

        def make(parts=parts):
            arrays = []
            for tensor, leaf, row in parts:
                array = np.asarray(jax.device_get(leaf if row is None else leaf[row]))
                arrays.append(array.T if tensor.transposed else array)
            axis = -1 if parts[0][0].transposed else 0
            # save_file ignores strides: a transposed view would be written wrongly.
            return np.ascontiguousarray(np.concatenate(arrays, axis=axis))

        size = sum(
            (leaf.size // (1 if row is None else leaf.shape[0])) * leaf.dtype.itemsize
            for _, leaf, row in parts
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
