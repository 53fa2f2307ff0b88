"""An experiment planned for a mesh: its shapes, what both programs cost, where every leaf lies."""

import dataclasses

import jax
from jax.sharding import Mesh

from ssjax import config as config_lib
from ssjax.config import Config
from ssjax.models.parameters import flatten
from ssjax.models.transformer import Transformer
from ssjax.parallel import partitioning
from ssjax.planning.plans import ProgramPlan, advice, plan_decoding, plan_training
from ssjax.planning.topologies import Chip, Topology
from ssjax.training.programs import TrainPrograms
from ssjax.weights.base import read_model_config


def resolve_shapes(config: Config) -> tuple[Config, Transformer]:
    """The config with the sizes of its base, and the model; no tokenizer or weights are read.

    Raises:
      UserError: the base or its streams cannot be.
    """
    model = config.model
    if model.pretrained:
        model = read_model_config(model.pretrained, model.dtype)
    elif not model.vocab_size:
        model = dataclasses.replace(model, vocab_size=config.data.tokenizer_vocab_size)
    streams = config.streams
    if streams.draft_vocab_size and not streams.draft_tokens:
        # Which tokens a run will find is in its data; their number is all that a plan needs.
        some = tuple(range(min(streams.draft_vocab_size, model.vocab_size)))
        streams = dataclasses.replace(streams, draft_tokens=some)
    config = dataclasses.replace(config, model=model, streams=streams)
    config_lib.check_stream_layers(config)
    shapes = dataclasses.replace(model, pretrained="")
    return config, Transformer(shapes, config.streams, True, config.adaptation)


def plan_programs(
    config: Config, model: Transformer, mesh: Mesh, topology: Topology | None
) -> dict:
    """Plans of both programs and what they mean on a chip, as plain values.

    The decode loop is that of the training's own evaluation, on `partitioning.decode_mesh`.
    """
    device = topology.device if topology else None
    hbm = device.hbm if device else 0

    def values(program: ProgramPlan) -> dict:
        return described(program, config, device)

    decode = config.decode
    decode_mesh = partitioning.decode_mesh(config.mesh, config.model, mesh)
    return {
        "topology": topology.name if topology else f"{mesh.size} devices here",
        "mesh": dict(mesh.shape),
        "decode_mesh": dict(decode_mesh.shape),
        "hbm": hbm,
        "dtype": config.model.dtype,
        "adaptation": config.adaptation.mode,
        "batch_size": config.data.batch_size,
        "num_tokens": config.data.max_prompt_length + config.data.max_target_length,
        "decode_batch_size": decode.batch_size,
        "train": values(plan_training(config, model, mesh, hbm)),
        "decode": values(plan_decoding(config, model, decode_mesh, hbm)),
    }


def described(program: ProgramPlan, config: Config, device: Chip | None) -> dict:
    """Plain values of a plan and what they mean on a chip.

    Args:
      program: of the config.
      config: resolved.
      device: the chip; None: not known.
    """
    values = dataclasses.asdict(dataclasses.replace(program, predicted=None))
    del values["predicted"]
    if device and program.traffic:
        values["seconds"] = program.seconds(device)
    if device and program.predicted:
        values["predicted"] = program.predicted.values(device)
    if not program.fits:
        values["advice"] = advice(program, config, device.hbm if device else 0)
    return values


def list_shardings(programs: TrainPrograms) -> list[dict]:
    """Every leaf of the train state and of the frozen weights."""
    groups = {
        "params": programs.state.params,
        "frozen": programs.frozen,
        "opt_state": programs.state.opt_state,
    }
    rows = []
    for group, tree in groups.items():
        if group == "opt_state":
            leaves = {
                jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
        else:
            leaves = flatten(tree)
        for name, leaf in leaves.items():
            rows.append(
                {
                    "leaf": f"{group}/{name}",
                    "shape": list(leaf.shape),
                    "dtype": str(leaf.dtype),
                    "sharding": [part for part in leaf.sharding.spec],
                    "bytes_per_device": partitioning.bytes_per_device(
                        leaf.shape, leaf.dtype, leaf.sharding
                    ),
                }
            )
    return rows
