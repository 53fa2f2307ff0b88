"""Runs of several processes, and runs that are killed: what is saved, and how it goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ssjax.weights.load import load_trained

ROOT = Path(__file__).parents[2]
NUM_STEPS = 12
NUM_KILLS = 20
pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What all runs share: prepared data and compiled programs."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def environment(shared):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def arguments(shared, *more):
    return [
        f"--config={ROOT / 'experiments' / 'dialogsum.py'}:smoke",
        f"--config.data.prepared_dir={shared / 'prepared'}",
        "--config.train.log_every=1",
        "--config.train.eval_every=0",
        "--config.train.eval_batches=1",
        "--config.eval.max_records=1",
        "--config.decode.max_new_tokens=2",
        *more,
    ]


def start(environment, shared, workdir, how="off", *more):
    command = [
        sys.executable,
        "-m",
        "ssjax.train",
        *arguments(
            shared,
            f"--config.train.num_steps={NUM_STEPS}",
            "--config.checkpoint.save_every=5",
            f"--config.workdir={workdir}",
            f"--distributed={how}",
            *more,
        ),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(environment, shared, workdir):
    """Two processes of two devices each, a mesh of 2x2x1."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(environment, shared, workdir, f"localhost:{port},2,{index}", "--config.mesh.fsdp=2")
        for index in range(2)
    ]


def finish(*processes):
    """Exit codes and standard errors."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


def last_step(workdir):
    return max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def leaves(state):
    """Leaves by name."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def loss_curve(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}
    return [records[step] for step in range(1, NUM_STEPS + 1)]


def drafts(workdir):
    """Tokens per call of the one validation, decoded by all processes together."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    [found] = [r for r in records if "validation_tokens_per_call" in r]
    return found["step"], found["validation_tokens_per_call"], found["validation_acceptance_1"]


@pytest.fixture(scope="module")
def uninterrupted(environment, shared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "one"
    codes, errors = finish(start(environment, shared, workdir))
    assert codes == [0], errors
    return workdir


@pytest.fixture(scope="module")
def stopped(environment, shared, uninterrupted, tmp_path_factory):
    """A run of two processes, the second of which got SIGTERM; and the step that was saved."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    processes = start_two(environment, shared, workdir)
    for line in processes[0].stderr:
        if line.startswith("step 3/"):
            processes[1].send_signal(signal.SIGTERM)
            break
    codes, errors = finish(*processes)
    assert codes == [42, 42], errors
    assert "saved; run the same command to continue" in errors[0]
    assert "stopped at" not in errors[1]  # only the first process speaks
    return workdir, last_step(workdir)


def test_all_processes_save_the_step_at_which_one_is_asked_to_stop(stopped):
    workdir, step = stopped
    assert 3 <= step < NUM_STEPS
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == step


@pytest.mark.parametrize("num_processes", [1, 2])
def test_it_continues_on_other_numbers_of_processes(
    stopped, uninterrupted, environment, shared, tmp_path, num_processes
):
    """The same batches: the losses of all steps are those of a run that was never stopped."""
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    if num_processes == 1:
        processes = [start(environment, shared, workdir)]
    else:
        processes = start_two(environment, shared, workdir)
    codes, errors = finish(*processes)
    assert codes == [0] * num_processes, errors
    assert f"continuing from step {stopped[1]}" in errors[0]
    np.testing.assert_allclose(loss_curve(workdir), loss_curve(uninterrupted), rtol=0, atol=1e-5)
    assert last_step(workdir) == NUM_STEPS
    assert drafts(workdir) == drafts(uninterrupted)
    ours, theirs = (leaves(load_trained(d).params) for d in (workdir, uninterrupted))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(
    environment, shared, tmp_path
):
    script = Path(__file__).with_name("kill_at_random.py")
    more = [
        "--config.train.num_steps=60",
        "--config.checkpoint.save_every=1",
        "--distributed=off",
        "--config.model.num_layers=2",
        "--config.streams.num_stream_layers=1",
        "--config.streams.num_streams=1",
        "--config.data.batch_size=2",
    ]
    finished = subprocess.run(
        [
            sys.executable,
            str(script),
            str(tmp_path),
            str(NUM_KILLS),
            "0",
            *arguments(shared, *more),
        ],
        cwd=ROOT,
        env=environment | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    log = (tmp_path / "log").read_text()
    assert finished.returncode == 0, finished.stderr + log
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["codes"] == {"killed": 0, "peace": 0}, log
    moments = result["moments"]
    assert "ended" not in moments and moments.count("saving") >= 5, moments
    assert "Traceback" not in log
    continued = [line for line in log.splitlines() if line.startswith("continuing from step")]
    assert len(continued) >= NUM_KILLS // 2

    ours, theirs = (
        leaves(ocp.load(str(tmp_path / name / "checkpoints" / "60"), checkpointable_name="state"))
        for name in ("killed", "peace")
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_what_long_runs_ask_for_works_together(environment, shared, tmp_path):
    """bfloat16, remat, accumulation, packed rows, a profile, a cache of compiled programs; stopped
    nowhere, continued as a finished run, on a mesh."""
    more = [
        "--config.model.dtype=bfloat16",
        "--config.train.remat=full",
        "--config.mesh.tensor=2",
        "--config.train.accumulation=2",
        "--config.data.packing=True",
        "--config.train.profile_at=2",
        f"--config.compilation_cache={tmp_path / 'programs'}",
    ]
    codes, errors = finish(start(environment, shared, tmp_path / "run", "off", *more))
    assert codes == [0], errors
    losses = loss_curve(tmp_path / "run")
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert list((tmp_path / "run" / "profile").glob("**/*.xplane.pb"))
    assert list((tmp_path / "programs").iterdir())


def test_a_process_that_cannot_join_says_so_in_one_line(environment, shared, tmp_path):
    for how in ("localhost:1", "localhost:1,2,2", "2,1"):
        codes, [error] = finish(start(environment, shared, tmp_path / "run", how))
        assert codes == [2] and "Traceback" not in error
        assert f"error: --distributed={how}" in error
    assert not (tmp_path / "run").exists()
