"""The weights that training starts from: the base's, and new ones beside them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssjax.config import Config
from ssjax.files.reading import to_json
from ssjax.files.writing import write_atomic
from ssjax.models import lora
from ssjax.models.axes import param_shardings
from ssjax.models.parameters import Params, fingerprint, merge, split
from ssjax.models.transformer import Transformer, init_params
from ssjax.parallel import distributed
from ssjax.weights import load
from ssjax.weights.base import Base, keep_origin


def starting_params(
    workdir: Path, config: Config, model: Transformer, base: Base | None, mesh: Mesh
) -> tuple[Params, Params]:
    """Trainable (float32) and frozen (compute dtype) parameters before the first step."""

    def new_leaves():
        return initial_params(model, config.seed, only_new=base is not None)

    shardings = param_shardings(jax.eval_shape(new_leaves), model.config, mesh)
    new_leaves = jax.jit(new_leaves, out_shardings=shardings)
    if base is None:
        return new_leaves(), {}
    if config.adaptation.mode == "full":
        weights = base.read_params(config.streams.num_stream_layers, jnp.float32, mesh)
        if base.config_json is not None:
            text = to_json(base.config_json)
            distributed.first(lambda: write_atomic(workdir / "base_config.json", text))
        digest = fingerprint(weights)
        distributed.first(lambda: keep_origin(workdir, base.name, base.revision, digest))
        return merge(begun_heads(new_leaves(), weights), weights), {}
    frozen, _ = load.read_base(workdir, config, mesh=mesh)
    return begun_heads(new_leaves(), frozen), frozen


def initial_params(model: Transformer, seed: int, *, only_new: bool) -> Params:
    """Random parameters, all or those that a base does not have; pure, to be jitted by the caller.

    In the detached mode the adapters of main rows begin as those of a run without streams.
    """
    params = init_params(model, seed)  # the compiler leaves out what is not returned
    if lora.is_detached(model.adaptation):
        # Not so by themselves: the keys of a scanned layer depend on how many leaves it has.
        adaptation = dataclasses.replace(model.adaptation, mode="shared")
        alone = init_params(model.clone(adaptation=adaptation), seed)
        of_main_rows, _ = split(alone, lora.is_of_main_rows)
        params = merge(of_main_rows, split(params, lora.is_of_main_rows)[1])
    return split(params, lora.is_new)[0] if only_new else params


def begun_heads(new: Params, base: Params) -> Params:
    """Medusa heads, if there are any, begin as copies of the base's LM head, as published."""
    if "medusa_head" not in new:
        return new
    heads = new["medusa_head"]
    table = base.get("lm_head", base["embedder"])

    def copies(table):
        return jnp.broadcast_to(table.astype(heads.dtype), heads.shape)

    return new | {"medusa_head": jax.jit(copies, out_shardings=heads.sharding)(table)}
