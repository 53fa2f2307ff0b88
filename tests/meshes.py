"""What the tests of meshes share: a model that divides by eight, meshes, one training run."""

import dataclasses
import math

import jax
import numpy as np
import oracles

from ssjax.config import AdaptationConfig, Config, MeshConfig
from ssjax.models.lora import split_trainable
from ssjax.models.parameters import flatten
from ssjax.parallel import partitioning
from ssjax.training import programs

BATCH_SIZE, PROMPT, TARGET = 16, 12, 10
MESHES = ((8, 1, 1), (2, 2, 2), (1, 1, 8))
ADAPTATIONS = {
    "full": AdaptationConfig(),
    "shared": AdaptationConfig("shared", rank=3, alpha=6.0),
    "lossless": AdaptationConfig("lossless", rank=3, alpha=6.0),
    "detached": AdaptationConfig("detached", rank=3, alpha=6.0),
}
SIZES = dict(vocab_size=64, embed_dim=64, num_layers=3, mlp_dim=96)
SIZES |= dict(num_heads=8, num_kv_heads=8, head_dim=8)


def make_mesh(sizes):
    """A mesh of as many of the simulated devices as the sizes ask for."""
    return partitioning.make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])


def make_model(mode="full", **changes):
    return oracles.make_model(
        adaptation=ADAPTATIONS[mode],
        **(SIZES | {"exit_rank": 2, "init_rank": 2, "tie_embeddings": False} | changes),
    )


def make_config(model, loss=None, **train):
    config = Config() if loss is None else Config(loss=loss)
    return dataclasses.replace(
        config,
        model=model.config,
        streams=model.streams,
        adaptation=model.adaptation,
        data=dataclasses.replace(
            config.data,
            batch_size=BATCH_SIZE,
            max_prompt_length=PROMPT,
            max_target_length=TARGET,
        ),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=1, learning_rate=3e-3),
        train=dataclasses.replace(config.train, num_steps=6, **train),
    )


def ragged_batch(seed):
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, PROMPT + 1, BATCH_SIZE).astype(np.int32)
    lengths = prompts + rng.integers(0, TARGET + 1, BATCH_SIZE).astype(np.int32)
    tokens = rng.integers(0, SIZES["vocab_size"], (BATCH_SIZE, PROMPT + TARGET))
    return jax.tree.map(np.asarray, oracles.batch_of(tokens, prompts, lengths))


def train(model, mesh, num_steps=3, **changes):
    """By step, mean losses and gradient norms; and the last trainable parameters."""
    program = programs.make_train_programs(make_config(model, **changes), model, mesh)
    params = oracles.random_params(model, seed=0, table_scale=0.4)
    trainable, frozen = split_trainable(jax.tree.map(np.asarray, params), model.adaptation)

    def place(values, wanted):
        return jax.tree.map(lambda x, w: jax.device_put(x, w.sharding), values, wanted)

    means, grad_norms = [], []
    with jax.set_mesh(mesh):
        state = program.init(place(trainable, program.state.params))
        frozen = place(frozen, program.frozen)
        for seed in range(num_steps):
            batch = partitioning.global_batch(ragged_batch(seed), mesh, BATCH_SIZE)
            sums = program.evaluate(state.params, frozen, batch)
            state, metrics = program.train(state, frozen, batch)
            means.append([metrics.loss, *sums.cross_entropy / sums.weight])
            grad_norms.append(metrics.grad_norm)
    measured = {"means": np.array(means), "grad_norm": np.array(grad_norms)}
    return measured, jax.device_get(state.params)


def shardings(sizes):
    """By mode and leaf of state and frozen weights, how a mesh divides it; a golden file's text."""
    mesh, listed = make_mesh(sizes), {}
    for mode in ADAPTATIONS:
        model = make_model(mode, num_kv_heads=4, qkv_bias=True)
        program = programs.make_train_programs(make_config(model), model, mesh)
        leaves = {f"frozen/{k}": leaf for k, leaf in flatten(program.frozen).items()}
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.state):
            leaves["state" + jax.tree_util.keystr(path)] = leaf
        listed[mode] = {k: f"{v.shape} {v.sharding.spec}" for k, v in sorted(leaves.items())}
    return listed
