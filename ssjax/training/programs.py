"""The compiled functions of a training run, jitted once with shardings and donation named.

`ssjax.train` runs them, `ssjax.plan` compiles the same ones for hardware that is not there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ssjax.config import Config
from ssjax.models import lora
from ssjax.models.axes import param_shardings, with_shardings
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
    data, train = config.data, config.train
    model = model.clone(execution=Execution(platform_of(mesh), train.fused_attention, train.remat))
    adamw = optimizer.make_optimizer(config.optimizer, train.num_steps)
    trainable, frozen = lora.split_trainable(abstract_params(model), config.adaptation)
    compute_dtype = jnp.dtype(config.model.dtype)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute_dtype), frozen)

    def init(params):
        return step.init_state(params, adamw)

    everywhere = partitioning.replicated(mesh)
    of_trainable = param_shardings(trainable, config.model, mesh)
    shapes = jax.eval_shape(init, trainable)
    of_state = TrainState(
        step=everywhere,
        params=of_trainable,
        opt_state=optax.tree_map_params(
            adamw,
            lambda _, sharding: sharding,
            shapes.opt_state,
            of_trainable,
            transform_non_params=lambda _: everywhere,
        ),
    )
    of_frozen = param_shardings(frozen, config.model, mesh)
    rows = partitioning.batch_sharding(mesh, data.batch_size)
    num_tokens = data.max_prompt_length + data.max_target_length
    tokens, is_target = (
        jax.ShapeDtypeStruct((data.batch_size, num_tokens), dtype, sharding=rows)
        for dtype in (jnp.int32, jnp.bool)
    )
    train_step = step.make_train_step(
        model,
        adamw,
        config.loss,
        num_anchors=data.max_target_length,
        accumulation=train.accumulation,
        seed=config.seed,
    )
    eval_step = step.make_eval_step(model, config.loss, num_anchors=data.max_target_length)
    return TrainPrograms(
        mesh=mesh,
        state=with_shardings(shapes, of_state),
        frozen=with_shardings(frozen, of_frozen),
        batch=Batch(tokens, tokens, is_target, data.packing),
        init=jax.jit(init, out_shardings=of_state, donate_argnums=0),
        train=jax.jit(
            train_step,
            in_shardings=(of_state, of_frozen, rows),
            out_shardings=(of_state, everywhere),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            eval_step, in_shardings=(of_trainable, of_frozen, rows), out_shardings=everywhere
        ),
    )
