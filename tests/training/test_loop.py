"""The training loop: what is compiled, profiled, saved; votes to stop."""

import dataclasses
import itertools
import json

import jax
import meshes
import numpy as np
import oracles
import pytest

from ssjax.training import loop
from ssjax.training.batches import Batches
from ssjax.training.callbacks import Callback, StopTraining
from ssjax.training.decoded import Decoded
from ssjax.training.interruption import Vote, Wish
from ssjax.training.policy import Patience, SaveClock
from ssjax.training.programs import make_train_programs
from ssjax.training.records import MetricsFile
from ssjax.training.reporting import make_reporter
from ssjax.training.walltime import WallTime
from ssjax.weights.checkpoint import Checkpoints
from ssjax.weights.saved_steps import find_step, steps

NUM_STEPS = 6


def arrays(seed, width):
    """A batch of half the sequences' lengths, so that it fits a narrow row."""
    batch = meshes.ragged_batch(seed)
    return {
        "tokens": batch.tokens[:, :width],
        "segments": batch.segments[:, :width],
        "is_target": batch.is_target[:, :width],
    }


@pytest.fixture(scope="module")
def model():
    return meshes.make_model(dtype="bfloat16", exit_rank=0)


@pytest.fixture(scope="module")
def programs(model):
    return make_train_programs(meshes.make_config(model), model, meshes.make_mesh((2, 1, 1)))


def run(workdir, model, programs, config, widths, callbacks=(), decode=None, patience=None):
    params = oracles.random_params(model, seed=0, table_scale=0.4)

    def place(leaf, wanted):
        return jax.device_put(np.asarray(leaf), wanted.sharding)

    with jax.set_mesh(programs.mesh):
        state = programs.init(jax.tree.map(place, params, programs.state.params))

    def batches(start):
        for step in range(start, NUM_STEPS):
            yield arrays(step, widths[step % len(widths)])

    training = loop.Training(
        config=config,
        programs=programs,
        frozen={},
        batches=Batches(batches, [arrays(100, 22), arrays(101, 22)]),
        reporter=make_reporter(
            config,
            [MetricsFile(workdir / "metrics.jsonl"), *callbacks],
            WallTime(),
            list(programs.mesh.devices.flat),
        ),
        profile_directory=workdir / "profile",
        tokenizer={"tokenizer.model": b"p"},
        decode=decode,
    )
    kept = config.checkpoint
    with Checkpoints(
        workdir / "checkpoints",
        keep_latest=1,
        keep_every=kept.keep_every,
        keep_best=kept.keep_best,
        best_by=kept.best_by,
        about={},
    ) as checkpoints:
        patience = patience or Patience(config.train.patience)
        return loop.train(training, state, checkpoints, patience)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, programs):
    """A bfloat16 model, trained with rows of two widths, validated every two steps."""
    said = []
    patch = pytest.MonkeyPatch()
    patch.setattr("ssjax.training.compiled.say", said.append)
    workdir = tmp_path_factory.mktemp("run")
    config = meshes.make_config(model, eval_every=2, profile_at=3, profile_steps=2)
    state, complete = run(workdir, model, programs, config, widths=(22, 16))
    patch.undo()
    assert complete
    return workdir, programs, state, said


def test_a_program_for_each_width_and_one_for_validation(trained):
    _, programs, _, said = trained
    assert [line.partition(" in ")[0] for line in said] == [
        "compiled for rows of 22 tokens",
        "compiled for rows of 16 tokens",
    ]
    assert programs.train._cache_size() == 0  # never compiled within a step
    assert programs.evaluate._cache_size() == 1


def test_the_last_record_says_where_the_seconds_went(trained):
    lines = (trained[0] / "metrics.jsonl").read_text().splitlines()
    *before, last = map(json.loads, lines)
    spent = {k: v for k, v in last.items() if k.startswith("seconds_")}
    assert 0 < last["goodput"] == spent["seconds_steps"] / sum(spent.values()) < 1
    assert min(spent.values()) > 0 and last["step"] == NUM_STEPS
    trained_in = [r["step_seconds"] for r in before if "step_seconds" in r]
    assert trained_in and all(seconds > 0 for seconds in trained_in)
    assert not any("mfu" in r for r in before)  # of a CPU no peak is known


def test_trained_weights_stay_float32_under_bfloat16(trained):
    _, _, state, _ = trained
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {x.dtype.name for x in [*jax.tree.leaves(state.params), *moments]} == {"float32"}


def test_chosen_steps_are_profiled(trained):
    workdir, *_ = trained
    assert list((workdir / "profile").glob("**/*.xplane.pb"))


def saved_every(num_steps, model):
    config = meshes.make_config(model, eval_every=0)
    kept = dataclasses.replace(config.checkpoint, save_every=num_steps, keep_best=1)
    return dataclasses.replace(config, checkpoint=kept)


def test_nothing_is_profiled_unless_asked(tmp_path, model, programs):
    _, complete = run(tmp_path, model, programs, saved_every(50, model), widths=(22,))
    assert complete and not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    ("best_by", "best"), [("validation_loss", 6), ("validation_tokens_per_call", 2)]
)
def test_the_best_is_judged_by_what_the_config_says(tmp_path, model, programs, best_by, best):
    """Decoding scripted: best at step 2, nothing measured at 4. The loss falls to the end."""
    script = {2: Decoded(2.5, (0.75, 0.5)), 4: None, 6: Decoded(1.5, (0.5, 0.0))}
    seen = {}

    def decode(state):
        step = int(state.step)
        seen[step] = jax.device_get(state.params["embedder"])  # there, and not donated
        return script[step]

    config = saved_every(2, model)
    checkpoint = dataclasses.replace(config.checkpoint, best_by=best_by)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, eval_every=2), checkpoint=checkpoint
    )
    run(tmp_path, model, programs, config, (22,), decode=decode)
    assert list(seen) == [2, 4, 6] and not np.array_equal(seen[2], seen[4])
    directory = tmp_path / "checkpoints"
    assert find_step(directory, "best", best_by) == best
    assert steps(directory) == sorted({best, 6})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    told = {r["step"]: r for r in map(json.loads, lines) if "validation_loss" in r}
    assert told[2]["validation_tokens_per_call"] == 2.5
    shares = [told[2][f"validation_acceptance_{depth}"] for depth in (1, 2)]
    assert shares == [0.75, 0.5]
    assert "validation_tokens_per_call" not in told[4]


def test_a_run_without_gains_ends_as_a_finished_one(tmp_path, model, programs, capsys):
    """Tokens per call scripted; a validation that is no gain is saved only where the run ends."""
    script = {1: 2.0, 2: 2.5, 3: 2.4, 4: 2.3}
    config = saved_every(0, model)
    changes = {
        "train": {"eval_every": 1, "patience": 2},
        "checkpoint": {"best_by": "validation_tokens_per_call"},
    }
    config = dataclasses.replace(
        config, **{k: dataclasses.replace(getattr(config, k), **v) for k, v in changes.items()}
    )
    callback = StopAt(None, tmp_path / "checkpoints")
    state, complete = run(
        tmp_path,
        model,
        programs,
        config,
        (22,),
        [callback],
        decode=lambda state: Decoded(script[int(state.step)], (0.5,)),
    )
    assert complete and callback.complete and int(state.step) == 4
    assert callback.saved == [1, 2, 4] and steps(tmp_path / "checkpoints") == [2, 4]
    said = capsys.readouterr().err
    assert "the run ends at step 4: validation_tokens_per_call was no better" in said
    assert "2 in a row" in said


def test_a_run_saves_when_its_minutes_are_over(tmp_path, model, programs, monkeypatch):
    """A clock that is read once a step, at the start and at each save; a minute each time."""
    seconds = itertools.count(step=60)
    monkeypatch.setattr(SaveClock.__init__, "__defaults__", (lambda: float(next(seconds)),))
    config = saved_every(0, model)
    kept = dataclasses.replace(config.checkpoint, save_minutes=2.0, keep_best=0)
    callback = StopAt(None, tmp_path / "checkpoints")
    run(
        tmp_path,
        model,
        programs,
        dataclasses.replace(config, checkpoint=kept),
        (22,),
        [callback],
    )
    assert callback.saved == [2, 4, 6]


class StopAt(Callback):
    """May ask to stop at a step; notes which checkpoints were there when it was told of them."""

    def __init__(self, step, directory):
        self.saved, self.complete = [], None
        self._step, self._directory = step, directory

    def on_progress(self, step, loss, tokens_per_second):
        if step == self._step:
            raise StopTraining

    def on_checkpoint(self, step):
        assert (self._directory / str(step)).is_dir()
        self.saved.append(step)

    def on_end(self, complete):
        self.complete = complete


@pytest.mark.parametrize(
    ("asked", "saved"),
    [(4, [2, 4, 5]), (6, [2, 4, 6])],  # a step is told of when the next one has begun
)
def test_a_callback_that_asks_to_stop_ends_the_run_saved(tmp_path, model, programs, asked, saved):
    callback = StopAt(asked, tmp_path / "checkpoints")
    config = saved_every(2, model)
    state, complete = run(tmp_path, model, programs, config, (22,), [callback])
    assert (callback.saved, int(state.step)) == (saved, saved[-1])
    assert complete == callback.complete == (asked == NUM_STEPS)


def test_one_process_stops_at_once():
    vote = Vote(meshes.make_mesh((2, 2, 2)))
    assert [vote.decide(wish) for wish in Wish] == list(Wish)


def test_several_processes_stop_one_step_later(monkeypatch):
    """All of them learn of a wish at the same call, and of the greatest."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    vote = Vote(meshes.make_mesh((2, 2, 2)))
    wishes = [Wish.GO_ON, Wish.SAVE, Wish.STOP, Wish.GO_ON]
    assert [vote.decide(wish) for wish in wishes] == [Wish.GO_ON, *wishes[:3]]
