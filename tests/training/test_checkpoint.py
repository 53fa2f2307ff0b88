"""Checkpoints: what comes back, what is kept, what an incomplete save leaves."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssjax.errors import UserError
from ssjax.models.axes import with_shardings
from ssjax.partitioning import one_device, replicated
from ssjax.training.checkpoint import Checkpoints, find_step, load_params
from ssjax.training.step import TrainState


def make_state(step, width=3):
    params = {"a": {"weight": jnp.arange(width * 2.0).reshape(2, width) + step}, "b": jnp.ones(2)}
    return TrainState(jnp.asarray(step, jnp.int32), params, optax.adamw(1e-3).init(params))


def save(checkpoints, step, validation_loss=None):
    checkpoints.save(
        make_state(step),
        data={"seed": 4, "next_batch": step},
        config={"model": {"embed_dim": 8}, "name": "x"},
        tokenizer={"tokenizer.model": b"pieces"},
        validation_loss=validation_loss,
    )


def open_checkpoints(directory, keep_latest=2, keep_best=1):
    return Checkpoints(directory, keep_latest=keep_latest, keep_best=keep_best)


def test_what_is_saved_comes_back(tmp_path):
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step is None
        save(checkpoints, 7)
        checkpoints.wait()
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step == 7
        state, data = checkpoints.restore(make_state(0))
    assert data == {"seed": 4, "next_batch": 7}
    jax.tree.map(np.testing.assert_array_equal, state, make_state(7))
    assert isinstance(state, TrainState)


def test_latest_and_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0, 6: None}
    with open_checkpoints(tmp_path / "c") as checkpoints:
        for step, loss in losses.items():
            save(checkpoints, step, loss)
        checkpoints.wait()
    kept = {int(path.name) for path in (tmp_path / "c").iterdir()}
    assert kept == {2, 5, 6}
    assert find_step(tmp_path / "c", "latest") == 6
    assert find_step(tmp_path / "c", "best") == 2
    assert find_step(tmp_path / "c", "5") == 5
    with pytest.raises(UserError, match=r"no checkpoint '4' .* steps saved: 2, 5, 6"):
        find_step(tmp_path / "c", "4")
    with pytest.raises(UserError, match="holds no checkpoints"):
        find_step(tmp_path / "elsewhere", "latest")


def test_an_unfinished_save_is_not_seen_and_is_removed(tmp_path):
    with open_checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 3)
        checkpoints.wait()
    unfinished = tmp_path / "c" / "9.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    (unfinished / "state").write_text("half")
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.restore(make_state(0))
    assert not unfinished.exists()


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The save runs in the background while the next steps overwrite the state's buffers."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = advance(make_state(0, width=100_000))
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with open_checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(
            state,
            data={"seed": 0},
            config={"a": 1},
            tokenizer={"tokenizer.model": b"p"},
            validation_loss=None,
        )
        for _ in range(20):
            state = advance(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_parameters_alone(tmp_path):
    with open_checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 2)
        checkpoints.wait()
    shapes = jax.eval_shape(lambda: make_state(0)).params
    shardings = jax.tree.map(lambda _: replicated(one_device()), shapes)
    params = load_params(tmp_path / "c", 2, with_shardings(shapes, shardings))
    jax.tree.map(np.testing.assert_array_equal, params, make_state(2).params)


# Orbax leaves coroutines of the other leaves behind when one leaf fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_model_is_refused_in_one_line(tmp_path):
    with open_checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 2)
        checkpoints.wait()
        with pytest.raises(UserError, match="cannot be read as this model") as error:
            checkpoints.restore(make_state(0, width=5))
    assert "\n" not in str(error.value)
    del error
    gc.collect()
