"""GGUF files as Hugging Face models: the config.json they amount to, and their tensors' names.

What files of an architecture mean is said by `gguf_architectures`. What follows is the path of
every other model (`huggingface`), so that mathematics that is not known stays refused there.

What llama.cpp does to weights when it writes a file is undone in `gguf_tensors`: it stores the rows
of queries and keys of "llama" in pairs, one more than the norm weights of Gemma, and the matrices
of GPT-2 the other way round.
"""

from collections.abc import Mapping
from typing import Any

from ssjax.errors import UserError
from ssjax.files.gguf import GgufHeader, TensorInfo
from ssjax.files.objects import show
from ssjax.messages import say_once
from ssjax.weights import tensor_files
from ssjax.weights.gguf_architectures import ARCHITECTURES, FACTORS, Architecture, Metadata
from ssjax.weights.gguf_tensors import GgufTensor, stored_tensor


def _architecture(header: GgufHeader) -> tuple[Architecture, Metadata]:
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f"{header.path}: GGUF architecture {show(name)} is not known; these are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name], Metadata(header, name)


def config_values(header: GgufHeader) -> dict[str, Any]:
    """The config.json that the Hugging Face model of a file would have.

    Raises:
      UserError: the architecture is not known, or metadata ask for other mathematics.
    """
    architecture, metadata = _architecture(header)
    found = {key: metadata.get(theirs) for key, theirs in architecture.keys.items()}
    values = {**architecture.values, **{k: v for k, v in found.items() if v is not None}}
    values |= architecture.more(metadata, header.tensors)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{header.path}: tensor token_embd.weight is missing; fetch it again")
    values |= {"vocab_size": table.shape[0], "tie_word_embeddings": _is_tied(header)}
    layers = next(key for key, theirs in architecture.keys.items() if theirs == "block_count")
    if extra := metadata.get("nextn_predict_layers", 0):
        values[layers] = values.get(layers, 0) - extra
        say_once(f"{header.path}: its last {extra} blocks predict further tokens and are not read")
    return values


def _is_tied(header: GgufHeader) -> bool:
    """Whether the head is the embedding: it is left out, or stands there a second time."""
    head, table = header.tensors.get("output.weight"), header.tensors["token_embd.weight"]
    return head is None or (
        head.kind == table.kind
        and tensor_files.equal(stored_tensor(head, "output"), stored_tensor(table, "token_embd"))
    )


def find_tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """All tensors of a model by their names in Hugging Face's files; those not known keep theirs.

    Raises:
      UserError: one is stored in a form that is not read, or lies beyond the end of its file.
    """
    architecture, metadata = _architecture(header)
    extra = metadata.get("nextn_predict_layers", 0)
    last = metadata.get("block_count", 0) - extra
    found = {}
    for info in header.tensors.values():
        block = info.name.split(".")[1] if info.name.startswith("blk.") else ""
        if info.name in FACTORS or (extra and block.isdigit() and int(block) >= last):
            continue
        name = _their_name(info.name, block, architecture.names)
        changes = _changes(info, architecture, metadata) if name != info.name else {}
        found[name] = stored_tensor(info, name, **changes)
    return found


def _their_name(name: str, block: str, names: Mapping[str, str]) -> str:
    stem, _, leaf = name.rpartition(".")
    pattern = stem.replace(f"blk.{block}.", "blk.{}.", 1) if block else stem
    if leaf not in ("weight", "bias") or pattern not in names:
        return name
    return f"{names[pattern].format(block)}.{leaf}"


def _changes(info: TensorInfo, architecture: Architecture, metadata: Metadata) -> dict[str, Any]:
    """How the stored values differ from Hugging Face's."""
    stem, _, leaf = info.name.rpartition(".")
    kind = stem.rpartition(".")[2]
    changes: dict[str, Any] = {}
    if architecture.pairs_rows and kind in ("attn_q", "attn_k"):
        heads = metadata.get("attention.head_count", 0)
        if kind == "attn_k":
            heads = metadata.get("attention.head_count_kv", heads)
        rows = info.shape[0]
        if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
            raise UserError(
                f"{info.path}: tensor {info.name} has {rows} rows, which are not those of {heads} "
                "heads; fetch the file again"
            )
        changes["heads"] = heads
    if architecture.norm_added and kind.endswith("norm") and leaf == "weight":
        changes["added"] = architecture.norm_added
    if kind in architecture.flips and leaf == "weight":
        changes["transposed"] = True
    return changes
