"""The training loop: what is compiled, profiled, saved; votes to stop."""

import dataclasses

import jax
import meshes
import numpy as np
import oracles
import pytest

from ssjax.training import loop, optimizer
from ssjax.training.interruption import StopVote
from ssjax.training.losses import output_names
from ssjax.training.programs import make_train_programs
from ssjax.training.reporting import Reporter
from ssjax.weights.checkpoint import Checkpoints

NUM_STEPS = 6


def arrays(seed, width):
    """A batch of half the sequences' lengths, so that it fits a narrow row."""
    batch = meshes.ragged_batch(seed)
    return {
        "tokens": batch.tokens[:, :width],
        "segments": batch.segments[:, :width],
        "is_target": batch.is_target[:, :width],
    }


def run(workdir, model, config, widths):
    programs = make_train_programs(config, model, meshes.make_mesh((2, 1, 1)))
    params = oracles.random_params(model, seed=0, table_scale=0.4)
    params = jax.tree.map(
        lambda x, wanted: jax.device_put(np.asarray(x), wanted.sharding),
        params, programs.state.params,
    )  # fmt: skip
    with jax.set_mesh(programs.mesh):
        state = programs.init(params)

    def batches(start):
        for step in range(start, NUM_STEPS):
            yield arrays(step, widths[step % len(widths)])

    with (
        Checkpoints(workdir / "checkpoints", keep_latest=1, keep_best=0, about={}) as checkpoints,
        Reporter(
            workdir,
            start_step=0,
            num_steps=NUM_STEPS,
            log_every=2,
            schedule=optimizer.make_schedule(config.optimizer, NUM_STEPS),
            names=output_names(config.streams),
        ) as reporter,
    ):
        state, complete = loop.train(
            config, programs, state, {},
            open_batches=batches,
            validation_batches=[arrays(100, 22), arrays(101, 22)],
            checkpoints=checkpoints,
            reporter=reporter,
            profile_directory=workdir / "profile",
            tokenizer={"tokenizer.model": b"p"},
            config_values={"a": 1},
        )  # fmt: skip
    assert complete
    return programs, state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bfloat16 model, trained with rows of two widths, validated every two steps."""
    workdir = tmp_path_factory.mktemp("run")
    model = meshes.make_model(dtype="bfloat16", exit_rank=0)
    config = meshes.make_config(model, eval_every=2, profile_at=3, profile_steps=2)
    programs, state = run(workdir, model, config, widths=(22, 16))
    return workdir, programs, state


def test_a_program_for_each_width_and_one_for_validation(trained):
    _, programs, _ = trained
    assert programs.train._cache_size() == 2
    assert programs.evaluate._cache_size() == 1


def test_trained_weights_stay_float32_under_bfloat16(trained):
    _, _, state = trained
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {x.dtype.name for x in [*jax.tree.leaves(state.params), *moments]} == {"float32"}


def test_chosen_steps_are_profiled(trained):
    workdir, _, _ = trained
    assert list((workdir / "profile").glob("**/*.xplane.pb"))


def test_nothing_is_profiled_unless_asked(tmp_path):
    model = meshes.make_model(exit_rank=0)
    config = meshes.make_config(model, eval_every=0)
    config = dataclasses.replace(
        config, checkpoint=dataclasses.replace(config.checkpoint, save_every=50)
    )
    run(tmp_path, model, config, widths=(22,))
    assert not (tmp_path / "profile").exists()


def test_one_process_stops_at_once():
    vote = StopVote(meshes.make_mesh((2, 2, 2)))
    assert [vote.decide(requested) for requested in (False, True)] == [False, True]


def test_several_processes_stop_one_step_later(monkeypatch):
    """All of them learn of a request at the same call."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    vote = StopVote(meshes.make_mesh((2, 2, 2)))
    assert [vote.decide(r) for r in (False, True, False)] == [False, False, True]
