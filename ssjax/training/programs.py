"""The compiled functions of a training run, jitted once with shardings and donation named.

`ssjax.train` runs them, `ssjax.plan` compiles the same ones for hardware that is not there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from ssjax.config import Config, DataConfig
from ssjax.models import lora
from ssjax.models.axes import placed, with_shardings
from ssjax.models.execution import Execution
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.parallel import partitioning
from ssjax.training import optimizer, step
from ssjax.training.losses import Batch
from ssjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class TrainPrograms:
    """What a run needs of the compiler; the abstract trees carry dtypes and shardings."""

    mesh: Mesh
    state: TrainState  # abstract
    frozen: Params  # abstract, in the compute dtype
    batch: Batch  # abstract
    init: Callable[[Params], TrainState]  # donates the trainable parameters
    train: Callable[[TrainState, Params, Batch], tuple]  # donates the state
    evaluate: Callable[[Params, Params, Batch], Any]
    # `train` without kernels, whose products could not be counted; never compiled.
    countable: Callable[[TrainState, Params, Batch], tuple]


def platform_of(mesh: Mesh) -> str:
    """What programs for a mesh are compiled for: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def make_train_programs(config: Config, model: Transformer, mesh: Mesh) -> TrainPrograms:
    """Defines the programs; nothing is compiled yet.

    Args:
      config: resolved.
      model: from `trained.make_model`.
      mesh: that the programs run on.
    """
    train, num_anchors = config.train, config.data.max_target_length
    model = model.clone(execution=Execution(platform_of(mesh), train.fused_attention, train.remat))
    adamw = optimizer.make_optimizer(config.optimizer, train.num_steps, model.adaptation)

    def init(params):
        return step.init_state(params, adamw)

    trainable, frozen = _abstract_params(model, mesh)
    state = _abstract_state(jax.eval_shape(init, trainable), adamw, trainable, mesh)
    of_state, of_frozen = _shardings(state), _shardings(frozen)
    everywhere = partitioning.replicated(mesh)
    rows = partitioning.batch_sharding(mesh, config.data.batch_size)

    def train_step(model):
        return step.make_train_step(
            model,
            adamw,
            config.loss,
            num_anchors=num_anchors,
            accumulation=train.accumulation,
            seed=config.seed,
        )

    plain = dataclasses.replace(model.execution, fused_attention=False)
    eval_step = step.make_eval_step(model, config.loss, num_anchors=num_anchors)
    return TrainPrograms(
        mesh=mesh,
        state=state,
        frozen=frozen,
        batch=_abstract_batch(config.data, rows),
        init=jax.jit(init, out_shardings=of_state, donate_argnums=0),
        train=jax.jit(
            train_step(model),
            in_shardings=(of_state, of_frozen, rows),
            out_shardings=(of_state, everywhere),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            eval_step,
            in_shardings=(of_state.params, of_frozen, rows),
            out_shardings=everywhere,
        ),
        countable=train_step(model.clone(execution=plain)),
    )


def _abstract_params(model: Transformer, mesh: Mesh) -> tuple[Params, Params]:
    """Trainable parameters in float32 and frozen ones in the compute dtype."""
    trainable, frozen = lora.split_trainable(abstract_params(model), model.adaptation)
    dtype = jnp.dtype(model.config.dtype)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), frozen)
    return placed(trainable, model.config, mesh), placed(frozen, model.config, mesh)


def _abstract_state(
    shapes: TrainState, adamw: optax.GradientTransformation, trainable: Params, mesh: Mesh
) -> TrainState:
    """The optimizer's moments lie where their parameters do, everything else on all devices."""
    everywhere = partitioning.replicated(mesh)
    of_trainable = _shardings(trainable)
    of_optimizer = optax.tree_map_params(
        adamw,
        lambda _, sharding: sharding,
        shapes.opt_state,
        of_trainable,
        transform_non_params=lambda _: everywhere,
    )
    return with_shardings(shapes, TrainState(everywhere, of_trainable, of_optimizer))


def _abstract_batch(data: DataConfig, rows: NamedSharding) -> Batch:
    """The widest batch of a config."""
    shape = (data.batch_size, data.max_prompt_length + data.max_target_length)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    is_target = jax.ShapeDtypeStruct(shape, jnp.bool, sharding=rows)
    return Batch(tokens, tokens, is_target, data.packing)


def _shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
