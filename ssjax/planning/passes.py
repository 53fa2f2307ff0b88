"""Decode passes by number of nodes and prefills by length, planned for a mesh."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from ssjax.config import Config
from ssjax.models.transformer import Transformer
from ssjax.planning.experiments import described
from ssjax.planning.plans import plan_decoding, plan_prefill
from ssjax.planning.topologies import Topology


def with_nodes(config: Config, num_nodes: int) -> Config:
    """The config that decodes with a best-first tree of so many nodes, or plainly with one.

    Args:
      config: of a model with streams or Medusa heads, where there is more than one.
      num_nodes: the root included.
    """
    if num_nodes == 1:
        decode = dataclasses.replace(config.decode, drafter="plain")
    else:
        draft = {"drafter": "auto", "tree": "best_first", "num_nodes": num_nodes - 1}
        decode = dataclasses.replace(config.decode, **draft, lookup_nodes=0, min_node_chance=0.0)
    return dataclasses.replace(config, decode=decode)


def plan_passes(
    config: Config,
    model: Transformer,
    mesh: Mesh,
    topology: Topology,
    *,
    node_counts: Sequence[int],
    prompt_lengths: Sequence[int],
    int8: bool = False,
    serving: bool = False,
) -> dict[str, Any]:
    """Plain values of a plan; one program is compiled for each count and for each length.

    Args:
      config, model: as `resolve_shapes` returns them.
      mesh: of the topology's devices, the first ones or all.
      topology: TPU chips.
      node_counts: nodes of a pass, the root included; plain decoding is planned beside them.
      prompt_lengths: tokens of padded prompts.
      int8: decoders hold the large matrices in eight bits.
      serving: passes are those of a server with decode.batch_size slots, all of them busy.
    """
    hbm = topology.device.hbm
    node_counts = sorted({1, *node_counts}) if node_counts else []
    passes, prefills = {}, {}
    for nodes in node_counts:
        program = plan_decoding(
            with_nodes(config, nodes), model, mesh, hbm, int8=int8, serving=serving
        )
        passes[nodes] = described(program, config, topology.device)
    for length in prompt_lengths:
        program = plan_prefill(config, model, mesh, hbm, length, int8=int8)
        prefills[length] = described(program, config, topology.device)
    decode = config.decode
    return {
        "topology": topology.name,
        "device": device_of(mesh),
        "mesh": dict(mesh.shape),
        "dtype": f"{config.model.dtype}, weights in int8" if int8 else config.model.dtype,
        "batch_size": decode.batch_size,
        "prompt_length": config.data.max_prompt_length,
        "max_new_tokens": decode.max_new_tokens,
        "sampling": {"temperature": decode.temperature, "top_k": decode.top_k}
        | {"top_p": decode.top_p, "min_p": decode.min_p},
        "deferred": decode.deferred,
        "serving": serving,
        "jax": jax.__version__,
        "passes": passes,
        "step_cost": step_costs(passes),
        "prefill": prefills,
    }


def device_of(mesh: Mesh) -> str:
    """What runs call the devices of a mesh; see `ssjax.decoding.ways.Situation`."""
    kind = mesh.devices.flat[0].device_kind
    return kind if mesh.size == 1 else f"{mesh.size} x {kind}"


def step_costs(passes: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """By number of nodes, what a pass takes over a plain one, as the compiler predicts both."""
    seconds = {
        nodes: values["predicted"]["seconds"]
        for nodes, values in passes.items()
        if "predicted" in values
    }
    return {nodes: each / seconds[1] for nodes, each in seconds.items()} if 1 in seconds else {}
