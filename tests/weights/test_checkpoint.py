"""Checkpoints: what comes back, what is kept, what damage and an incomplete save leave."""

import gc
import math
import os
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssjax.errors import DamagedError, UserError
from ssjax.files import manifest
from ssjax.models.axes import with_shardings
from ssjax.parallel.partitioning import one_device, replicated
from ssjax.training.step import TrainState
from ssjax.weights import checkpoint
from ssjax.weights.checkpoint import Checkpoints, load_params, restore
from ssjax.weights.saved_steps import find_step, steps

ABOUT = {"data": {"train": "ab"}, "tokenizer": {"tokenizer.model": "cd"}}


def make_state(step, width=3):
    params = {"a": {"weight": jnp.arange(width * 2.0).reshape(2, width) + step}, "b": jnp.ones(2)}
    return TrainState(jnp.asarray(step, jnp.int32), params, optax.adamw(1e-3).init(params))


def save(checkpoints, step, measured=None):
    checkpoints.save(
        make_state(step),
        data={"seed": 4, "next_batch": step},
        config={"model": {"embed_dim": 8}, "name": "x"},
        tokenizer={"tokenizer.model": b"pieces"},
        measured=measured,
    )


def measured(loss, tokens_per_call=None):
    """What a validation measured; without prompts that were decoded the loss alone."""
    found = {"validation_loss": loss, "validation_tokens_per_call": tokens_per_call}
    return {name: value for name, value in found.items() if value is not None} or None


TOKENS_PER_CALL = "validation_tokens_per_call"


def open_checkpoints(directory, **kept):
    defaults = dict(keep_latest=2, keep_every=0, keep_best=1, best_by="validation_loss")
    return Checkpoints(directory, about=ABOUT, **(defaults | kept))


def write_steps(directory, *steps):
    """Saves the steps, with a validation loss of the step's number."""
    with open_checkpoints(directory, keep_latest=len(steps)) as checkpoints:
        for step in steps:
            save(checkpoints, step, measured(float(step)))
        checkpoints.wait()


def params_wanted(width=3):
    shapes = jax.eval_shape(lambda: make_state(0, width)).params
    return with_shardings(shapes, jax.tree.map(lambda _: replicated(one_device()), shapes))


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two whole checkpoints, of steps 2 and 4. Not to be changed."""
    directory = tmp_path_factory.mktemp("written") / "c"
    write_steps(directory, 2, 4)
    return directory


@pytest.fixture
def saved(written, tmp_path):
    """A copy of them."""
    return shutil.copytree(written, tmp_path / "c")


def test_what_is_saved_comes_back(tmp_path):
    assert restore(tmp_path / "c", make_state(0)) is None
    assert checkpoint.read_about(tmp_path / "c") is None
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step is None
        save(checkpoints, 7)
        checkpoints.wait()
        assert checkpoints.latest_step == 7
    state, data = restore(tmp_path / "c", make_state(0))
    assert data == {"seed": 4, "next_batch": 7}
    assert_equal(state, make_state(7))
    assert isinstance(state, TrainState)
    assert checkpoint.read_about(tmp_path / "c") == ABOUT


def test_latest_and_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0, 6: None}
    with open_checkpoints(tmp_path / "c") as checkpoints:
        for step, loss in losses.items():
            save(checkpoints, step, measured(loss))
        checkpoints.wait()
    assert steps(tmp_path / "c") == [2, 5, 6]
    assert find_step(tmp_path / "c", "latest") == 6
    assert find_step(tmp_path / "c", "best") == 2
    assert find_step(tmp_path / "c", "5") == 5
    for which in ("4", "²", "٥", "-1"):
        with pytest.raises(UserError, match=f"no checkpoint '{which}' .* steps saved: 2, 5, 6"):
            find_step(tmp_path / "c", which)
    with pytest.raises(UserError, match="holds no checkpoints"):
        find_step(tmp_path / "elsewhere", "latest")


VALIDATIONS = {1: (1.0, None), 2: (2.0, 2.5), 3: (3.0, math.nan), 4: (4.0, 1.5), 5: None}


def test_every_so_manieth_is_kept_for_ever(tmp_path):
    """Beside the newest and the best, also by a run that goes on from there."""
    for begun in (0, 6):
        with open_checkpoints(tmp_path / "c", keep_latest=1, keep_every=4) as checkpoints:
            for step in range(begun + 1, begun + 7):
                save(checkpoints, step, measured(abs(step - 3.0)))
            checkpoints.wait()
    assert steps(tmp_path / "c") == [3, 4, 8, 12]


def test_a_validation_that_is_among_the_best_is_told(tmp_path):
    kept = dict(keep_latest=1, keep_best=2)
    with open_checkpoints(tmp_path / "c", **kept) as checkpoints:
        assert checkpoints.is_among_best(measured(9.0))
        for step, loss in enumerate((3.0, None, 2.0, 5.0), start=1):
            save(checkpoints, step, measured(loss))
    with open_checkpoints(tmp_path / "c", **kept) as checkpoints:  # as the run goes on
        told = [checkpoints.is_among_best(measured(loss)) for loss in (2.9, 3.0, 4.0, math.nan)]
        assert told == [True, False, False, False]
        assert not checkpoints.is_among_best({TOKENS_PER_CALL: 2.0})
    with open_checkpoints(tmp_path / "c", keep_best=0) as checkpoints:
        assert not checkpoints.is_among_best(measured(1.0))


def test_the_best_by_tokens_per_call_is_kept(tmp_path):
    """Also where the loss says otherwise, one measured nothing, and one is no number."""
    with open_checkpoints(tmp_path / "c", keep_latest=1, best_by=TOKENS_PER_CALL) as checkpoints:
        for step, found in VALIDATIONS.items():
            save(checkpoints, step, found and measured(*found))
        checkpoints.wait()
    assert steps(tmp_path / "c") == [2, 5]
    assert find_step(tmp_path / "c", "best", TOKENS_PER_CALL) == 2


def test_what_makes_the_best_may_change_midway(tmp_path):
    """Every checkpoint carries all that was measured; one without the value is never the best."""
    with open_checkpoints(tmp_path / "c", keep_latest=9) as checkpoints:
        for step, found in VALIDATIONS.items():
            save(checkpoints, step, found and measured(*found))
    assert find_step(tmp_path / "c", "best") == 1
    assert find_step(tmp_path / "c", "best", TOKENS_PER_CALL) == 2
    with open_checkpoints(tmp_path / "c", keep_latest=1, best_by=TOKENS_PER_CALL) as checkpoints:
        save(checkpoints, 6, measured(0.5, 2.0))
        checkpoints.wait()
    assert steps(tmp_path / "c") == [2, 6]


def test_checkpoints_without_the_value_have_no_best(saved):
    """As those of a version that decoded nothing."""
    with pytest.raises(UserError, match="saved: 2, 4, none measured by validation_tokens_per_call"):
        find_step(saved, "best", TOKENS_PER_CALL)


def test_an_unfinished_save_is_not_seen_and_is_removed(saved):
    unfinished = saved / "9.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    (unfinished / "state").write_text("half")
    assert restore(saved, make_state(0))[1]["next_batch"] == 4
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step == 4
        save(checkpoints, 5, None)  # waits for the removal, which goes on in the background
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
            measured=None,
        )
        for _ in range(20):
            state = advance(state)
        checkpoints.wait()
    assert_equal(restore(tmp_path / "c", state)[0], expected)


def test_parameters_alone(saved):
    assert_equal(load_params(saved, 2, params_wanted()), make_state(2).params)


# Orbax leaves coroutines of the other leaves behind when one leaf fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_model_is_refused_in_one_line(saved, capfd):
    for read in (
        lambda: restore(saved, make_state(0, width=5)),
        lambda: load_params(saved, 4, params_wanted(width=5)),
    ):
        with pytest.raises(UserError, match="does not hold this model") as error:
            read()
        assert "\n" not in str(error.value) and not isinstance(error.value, DamagedError)
    del error
    gc.collect()
    assert capfd.readouterr().err == ""


def blob(path):
    """The file with the weights."""
    return max(path.glob("state/**/d/*"), key=lambda file: file.stat().st_size)


def truncate(path):
    os.truncate(blob(path), 100)


def lose(path):
    blob(path).unlink()


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def become_a_file(path):
    shutil.rmtree(path)
    path.write_text("24")


def lose_metrics(path):
    (path / "metrics" / "metrics").write_text("{")


def lose_the_list_and_weights(path):
    """As a copy that was broken off, or of a version that wrote no list."""
    (path / "manifest.json").unlink()
    lose(path)


DAMAGES = [truncate, lose, empty, become_a_file, lose_metrics, lose_the_list_and_weights]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_training_falls_back_to_the_last_whole_one(saved, capsys, damage):
    damage(saved / "4")
    state, data = restore(saved, make_state(0))
    assert data["next_batch"] == 2
    assert_equal(state, make_state(2))
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{saved / '4'} " in line and "set aside as 4.damaged" in line
    write_steps(saved, 4)  # trained again
    assert_equal(restore(saved, make_state(0))[0], make_state(4))
    damage(saved / "4")
    restore(saved, make_state(0))
    assert {p.name for p in saved.iterdir()} == {"2", "4.damaged", "4.damaged1"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_decoding_names_what_is_damaged_and_what_is_whole(saved, damage):
    damage(saved / "4")
    with pytest.raises(DamagedError, match=r"/4 .*; whole: 2 \(--checkpoint 2\)") as error:
        load_params(saved, find_step(saved, "latest"), params_wanted())
    assert "\n" not in str(error.value) and error.value.exit_code == 3
    assert_equal(load_params(saved, find_step(saved, "2"), params_wanted()), make_state(2).params)


def test_damage_of_an_older_one_does_not_keep_a_run_from_going_on(saved, capsys):
    lose_metrics(saved / "2")
    assert restore(saved, make_state(0))[1]["next_batch"] == 4
    assert "2 is damaged: metrics/metrics" in capsys.readouterr().err
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step == 4


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(saved):
    truncate(saved / "2")
    truncate(saved / "4")
    for read in (
        lambda: restore(saved, make_state(0)),
        lambda: load_params(saved, 4, params_wanted()),
    ):
        with pytest.raises(DamagedError, match="no checkpoint in .*is whole|no other is whole"):
            read()
    assert steps(saved) == [2, 4]


def test_a_checkpoint_of_an_older_version_is_read_and_said_once(saved, capsys):
    (saved / "4" / "manifest.json").unlink()
    for _ in range(2):
        assert_equal(restore(saved, make_state(0))[0], make_state(4))
    assert capsys.readouterr().err.count("older version") == 1
    assert checkpoint.read_about(saved) == ABOUT  # of step 2


def flip(path, rng):
    """Flips one bit; returns what undoes it."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    return lambda: path.write_bytes(content)


def check_flips(directory, count, seed):
    """Nothing else is ever read; returns how many flips were noticed."""
    rng, noticed = random.Random(seed), 0
    files = [path for path in sorted((directory / "4").rglob("*")) if path.is_file()]
    params, state = make_state(4).params, make_state(4)
    for number in range(count):
        # Every file in turn at first: most bytes are those of a few.
        undo = flip(files[number] if number < len(files) else rng.choice(files), rng)
        try:
            if number % 2:
                assert_equal(load_params(directory, 4, params_wanted()), params)
            else:
                read, data = restore(directory, make_state(0))
                assert data["next_batch"] in (2, 4)
                assert_equal(read, state if data["next_batch"] == 4 else make_state(2))
                if data["next_batch"] == 2:
                    (directory / "4.damaged").rename(directory / "4")
                    noticed += 1
        except DamagedError:
            noticed += 1
        undo()
    return noticed


def test_flipped_bits_are_noticed_or_harmless(saved):
    count = 60
    assert check_flips(saved, count, seed=0) > count * 0.6


@pytest.mark.stress
def test_many_flipped_bits_are_noticed_or_harmless(saved):
    count = 1000
    assert check_flips(saved, count, seed=1) > count * 0.6


def test_a_flipped_bit_in_a_model_is_noticed(tmp_path):
    wanted = params_wanted()
    checkpoint.save_model(tmp_path / "params", make_state(1).params)
    assert_equal(checkpoint.load_model(tmp_path / "params", wanted), make_state(1).params)
    undo = flip(max(tmp_path.glob("params/**/d/*"), key=os.path.getsize), random.Random(0))
    with pytest.raises(DamagedError, match="is not what was written"):
        checkpoint.load_model(tmp_path / "params", wanted)
    undo()
    manifest.write(tmp_path / "params", {})
    assert_equal(checkpoint.load_model(tmp_path / "params", wanted), make_state(1).params)


# A limit on the size of files stands in for a full disk.
_SAVES_ON_A_FULL_DISK = """
import resource, signal, sys
sys.path[:0] = sys.argv[1:3]
import jax.numpy as jnp, test_checkpoint as t
from pathlib import Path
from ssjax.errors import UserError
directory = Path(sys.argv[3])
with t.open_checkpoints(directory) as checkpoints:
    t.save(checkpoints, 5)
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
    try:
        t.save(checkpoints, 6)
        t.save(checkpoints, 7)
    except UserError as error:
        print(error)
        raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize("limit", [50, 300])  # of the first file, and of those with contents
def test_a_save_that_fails_is_one_line_and_ends_the_process(saved, limit):
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _SAVES_ON_A_FULL_DISK,
            here,
            os.path.dirname(here),
            saved,
            str(limit),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 2 and done.stderr == "", done.stderr[-2000:]
    assert "6 could not be saved (" in done.stdout and "File too large)" in done.stdout
    assert "earlier ones are as they were: 2, 4, 5;" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert steps(saved) == [2, 4, 5] and not list(saved.glob("*tmp*"))
    assert_equal(load_params(saved, 5, params_wanted()), make_state(5).params)
