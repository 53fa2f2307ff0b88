"""One training step and one validation step, as pure functions that the entry point jits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ssjax.config import LossConfig
from ssjax.models.parameters import Params, merge
from ssjax.models.transformer import Transformer
from ssjax.training.losses import (
    Batch,
    LossSums,
    loss_sums,
    loss_weights,
    output_offsets,
    target_weight,
    weighted_loss,
)


@struct.dataclass
class TrainState:
    """What training changes. No functions, no frozen weights, no random key."""

    step: jax.Array  # [] int32, updates applied so far
    params: Params  # trainable leaves only
    opt_state: Any


@struct.dataclass
class StepMetrics:
    """What one step reports: sums with their weights, the mean is taken on the host."""

    sums: LossSums
    loss: jax.Array  # [] float32, the weighted loss that was minimised
    grad_norm: jax.Array  # [] float32, before clipping


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    config: LossConfig,
    *,
    num_anchors: int,
    accumulation: int,
    seed: int = 0,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, StepMetrics]]:
    """Returns step(state, frozen, batch) -> (state, metrics); pure, not yet jitted.

    Args:
      model: scanned form.
      optimizer: applied to the trainable parameters.
      config: weights of the loss.
      num_anchors: longest target, in tokens.
      accumulation: micro-batches a step; divides the batch. The result does not depend on it
        beyond float rounding and dropout.
      seed: of LoRA dropout; the key of a step is a function of seed and step.
    """
    offsets = output_offsets(model.streams)
    alphas = loss_weights(config, model.streams)
    drops = model.adaptation.mode != "full" and model.adaptation.dropout > 0

    def loss(trainable, frozen, batch, weight, key):
        params = merge(trainable, frozen)
        sums = loss_sums(model, params, batch, num_anchors, config, key)
        return weighted_loss(sums, alphas, weight), sums

    def step(state: TrainState, frozen: Params, batch: Batch):
        weight = target_weight(batch, offsets)
        gradient = jax.grad(loss, has_aux=True)
        key = jax.random.fold_in(jax.random.key(seed), state.step) if drops else None
        if accumulation == 1:
            grads, sums = gradient(state.params, frozen, batch, weight, key)
        else:
            micro_batches = jax.tree.map(lambda x: _every(x, accumulation), batch)

            def add(totals, numbered):
                number, micro_batch = numbered
                own_key = jax.random.fold_in(key, number) if drops else None
                added = gradient(state.params, frozen, micro_batch, weight, own_key)
                return jax.tree.map(jnp.add, totals, added), None

            nothing = LossSums.zeros(len(offsets))
            zeros = (jax.tree.map(jnp.zeros_like, state.params), nothing)
            numbered = (jnp.arange(accumulation), micro_batches)
            (grads, sums), _ = jax.lax.scan(add, zeros, numbered)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(sums, weighted_loss(sums, alphas, weight), optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _every(x, count):
    """[B, ...] -> [count, B / count, ...], every count-th row: no row leaves its device."""
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)


def make_eval_step(
    model: Transformer, config: LossConfig, *, num_anchors: int
) -> Callable[[Params, Params, Batch], LossSums]:
    """Returns step(params, frozen, batch) -> sums, to be added up over batches."""

    def step(params: Params, frozen: Params, batch: Batch) -> LossSums:
        return loss_sums(model, merge(params, frozen), batch, num_anchors, config)

    return step
