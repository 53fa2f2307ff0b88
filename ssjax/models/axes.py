"""Logical axes of every parameter, and from them the shardings of parameter trees."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssjax.config import ModelConfig
from ssjax.models.int8 import Int8, Weight
from ssjax.models.parameters import Params
from ssjax.parallel import partitioning

# Weights are [out, in]. The first axis of LoRA's a and the last of its b are the rank.
PROJECTIONS: Mapping[str, tuple[str, str]] = {
    "q_proj": ("heads", "embed"),
    "k_proj": ("kv_heads", "embed"),
    "v_proj": ("kv_heads", "embed"),
    "o_proj": ("embed", "heads"),
    "gate_proj": ("mlp", "embed"),
    "up_proj": ("mlp", "embed"),
    "down_proj": ("embed", "mlp"),
    # Of `parameters.join_projections`.
    "qkv_proj": ("heads", "embed"),
    "gate_up_proj": ("mlp", "embed"),
}
TABLES: Mapping[str, tuple[str, ...]] = {
    "embedder": ("vocab", "embed"),
    "lm_head": ("vocab", "embed"),
    "lm_head_bias": ("vocab",),
    "position_table": ("positions", "embed"),
    "table_in": ("embed", "table"),
    "table_out": ("table", "embed"),
    "stream_embedding": ("streams", "features"),
    "stream_init_down": ("rank", "embed"),
    "stream_init_up": ("embed", "rank"),
    "stream_root_down": ("rank", "embed"),
    "stream_root_up": ("embed", "rank"),
    "parent_down": ("rank", "embed"),
    "parent_query": ("rank", "embed"),
    "parent_gate": ("streams", "rank"),
    "parent_up": ("embed", "rank"),
    "exit_down": ("rank", "embed"),
    "exit_up": ("embed", "rank"),
    "medusa_weight": ("streams", "features", "embed"),
    "medusa_bias": ("streams", "features"),
    "medusa_head": ("streams", "vocab", "embed"),
    "draft_head": ("vocab", "embed"),  # of `head.with_draft_head`
}


def param_axes(path: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of a parameter of the scanned form.

    Args:
      path: names on the way to it, such as ("trunk", "layers", "mlp", "up_proj", "weight").

    Raises:
      ValueError: no parameter of ours has this name.
    """
    stacked = ("layers",) if "layers" in path else ()
    if path[-1] in TABLES:
        return TABLES[path[-1]]
    owner, leaf = ("", *path)[-2:]
    if owner in PROJECTIONS:
        out, into = PROJECTIONS[owner]
        own = {
            "weight": (out, into),
            "bias": (out,),
            "lora_a": ("rank", into),
            "lora_b": (out, "rank"),
            "stream_lora_a": ("rank", into),
            "stream_lora_b": (out, "rank"),
        }
        if leaf in own:
            return (*stacked, *own[leaf])
    if owner.endswith("_norm") and leaf in ("weight", "bias"):
        return (*stacked, "features")
    raise ValueError(f"parameter {'/'.join(path)} has no logical axes; add it to models/axes.py")


def param_shardings(params: Params, config: ModelConfig, mesh: Mesh) -> Params:
    """The sharding of every parameter: a tree like `params`, arrays or shape structs.

    Raises:
      ValueError: a parameter without logical axes.
    """
    units = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}

    def sharding(path, leaf):
        axes = param_axes(tuple(part.key for part in path))
        sizes = [units.get(axis, size) for axis, size in zip(axes, leaf.shape, strict=True)]
        return NamedSharding(mesh, partitioning.spec(axes, sizes, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding, params)


def placed(params: Params, config: ModelConfig, mesh: Mesh | None) -> Params:
    """Shape structs of parameters with their shardings; without a mesh, on the first device."""
    mesh = mesh or partitioning.one_device()
    return with_shardings(params, param_shardings(params, config, mesh))


def moved(params: Params, config: ModelConfig, mesh: Mesh) -> Params:
    """The same parameters, divided over a mesh of the devices that hold them; to be called by all.

    Those that lie so already are not copied.
    """
    return jax.device_put(params, param_shardings(params, config, mesh))


def with_shardings(shapes, shardings):
    """Shape structs that carry shardings; two trees of the same structure."""

    def add(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(add, shapes, shardings)


def gathered(weight: Weight, *axes: str) -> Weight:
    """A weight with its "embed" dimension whole, the others as they are: what FSDP gathers.

    Cast before, so that fewer bytes travel. Without a mesh of several devices, the weight.
    """
    if isinstance(weight, Int8):
        return weight.replace(values=gathered(weight.values, *axes))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return weight
    parts = [None if axis == "embed" else PartitionSpec.UNCONSTRAINED for axis in axes]
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*parts))
