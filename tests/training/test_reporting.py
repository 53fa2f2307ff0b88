"""Metrics: means by name, files that continue, divergence, what callbacks are told."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from ssjax.errors import DivergedError, UserError
from ssjax.training.callbacks import Callback, StopTraining
from ssjax.training.decoded import Decoded
from ssjax.training.display import Display
from ssjax.training.losses import LossSums
from ssjax.training.records import MetricsFile
from ssjax.training.reporting import Reporter, loss_record
from ssjax.training.step import StepMetrics
from ssjax.training.walltime import WallTime


def metrics(loss, weight=2.0):
    losses = np.array([loss, 2 * loss]) * weight
    sums = LossSums(losses, np.array([weight, 0.0]), np.array([weight, weight]), losses)
    return StepMetrics(sums, np.float32(loss), np.float32(1.0))


@contextlib.contextmanager
def reporting(callbacks, start_step=0, log_every=2, num_steps=5, now=None, peak_flops=None):
    reporter = Reporter(
        callbacks,
        num_steps=num_steps,
        log_every=log_every,
        schedule=lambda step: step / 10,
        names=("main", "stream_1"),
        wall=WallTime() if now is None else WallTime(now),
        peak_flops=peak_flops,
    )
    with reporter.running(start_step):
        yield reporter


def keep_records(workdir):
    return [MetricsFile(workdir / "metrics.jsonl")]


def keeping(workdir, **settings):
    return reporting(keep_records(workdir), **settings)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_means_are_weighted_over_steps(tmp_path):
    with keeping(tmp_path) as r:
        r.add_step(1, metrics(1.0, weight=1.0), 10)
        r.add_step(2, metrics(4.0, weight=3.0), 10)
        r.add_step(3, metrics(5.0), 10)
    [record] = records(tmp_path)
    assert record["step"] == 2 and record["learning_rate"] == 0.1
    assert record["loss_main"] == pytest.approx((1 * 1 + 4 * 3) / 4)
    assert record["loss_stream_1"] == pytest.approx(2 * (1 * 1 + 4 * 3) / 4)
    assert (record["accuracy_main"], record["accuracy_stream_1"]) == (1.0, 0.0)


def test_no_targets_is_zero_not_nan():
    assert set(loss_record(LossSums.zeros(2), ("main", "stream_1")).values()) == {0.0}


def test_records_after_the_restored_step_go(tmp_path):
    with keeping(tmp_path, log_every=1) as r:
        for step in range(1, 5):
            r.add_step(step, metrics(1.0), 10)
        r.add_validation(4, 1.0, metrics(1.0).sums)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut short by a kill
    with keeping(tmp_path, start_step=2, log_every=1) as r:
        r.add_step(3, metrics(7.0), 10)
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]
    assert records(tmp_path)[-1]["loss"] == 7.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_step_blames_the_weights_later_ones_the_optimizer(tmp_path, bad):
    with keeping(tmp_path) as r:
        with pytest.raises(DivergedError, match=r"cannot begin: .* at step 1, .* base model"):
            r.add_step(1, metrics(bad), 10)
        with pytest.raises(DivergedError, match=r"diverged at step 3: .*learning_rate"):
            r.add_step(3, metrics(bad), 10)
        with pytest.raises(DivergedError, match=r"diverged at step 1: validation .*learning_rate"):
            r.add_validation(1, bad, metrics(1.0).sums)
    assert records(tmp_path) == [] and DivergedError.exit_code == 4


def test_a_file_that_cannot_be_appended_is_one_line(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    file = MetricsFile(tmp_path / "metrics.jsonl")
    with reporting([file], log_every=1) as r:
        file._file.close()
        file._file = full.open("a")
        with pytest.raises(UserError, match="cannot write /dev/full: No space left"):
            r.add_step(1, metrics(1.0), 10)


def test_damaged_records_are_passed_over(tmp_path):
    lines = [b'{"step": 1}', b'{"step": \xff}', b"[]", b"7", b'{"step": "x"}', b'{"step": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with keeping(tmp_path, start_step=2):
        assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_plain_lines_show_loss_speed_and_time_left(capsys):
    with reporting([Display()]) as r:
        r.add_step(1, metrics(1.0), 10)
        r.add_step(2, metrics(1.0), 10)
    line = capsys.readouterr().err
    assert "step 2/5" in line and "loss 1.000" in line
    assert "tokens/s" in line and "s left" in line


def test_speed_is_that_of_steps_alone(tmp_path, monkeypatch, capsys):
    """Two steps of 2 s, 9 s between them: 40 tokens, and 6 of at most 10 operations a second."""
    now = 0.0
    held = {"memory_gib": 1.5, "memory_peak_gib": 2.0}
    monkeypatch.setattr("ssjax.parallel.accelerators.memory", lambda: held)
    callbacks = [*keep_records(tmp_path), Display()]
    with reporting(callbacks, now=lambda: now, peak_flops=10.0) as r:
        now += 2.0
        r.add_step(1, metrics(1.0), 10, 12.0)
        with r.wall.spent_on("validation"):
            now += 9.0
        now += 2.0
        r.add_step(2, metrics(1.0), 30, 12.0)
        r.add_summary()
    step, summary = records(tmp_path)
    assert (step["tokens_per_second"], step["step_seconds"], step["mfu"]) == (10.0, 2.0, 0.6)
    assert {k: step[k] for k in held} == held
    assert summary["goodput"] == 4 / 13 and summary["seconds_validation"] == 9
    lines = capsys.readouterr().err.splitlines()
    assert "2 s a step, 10 tokens/s, MFU 60.0 %, 1.5 GiB (peak 2.0), " in lines[0]
    assert lines[1].startswith("goodput 31 %: steps 4.0 s, compile 0.0 s, validation 9.0 s")


def test_prompts_that_were_decoded_stand_beside_the_losses(tmp_path, capsys):
    decoded = Decoded(2.5, (0.75, 0.5))
    with reporting([*keep_records(tmp_path), Display()]) as r:
        r.add_validation(2, 3.0, metrics(1.0).sums, decoded)
        r.add_validation(4, 3.0, metrics(1.0).sums)
    with_drafts, without = records(tmp_path)
    assert with_drafts.keys() - without.keys() == {
        "validation_tokens_per_call",
        "validation_acceptance_1",
        "validation_acceptance_2",
    }
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("1.00 | 0.00, 2.50 tokens per call, acceptance 0.75 0.50")
    assert lines[1].endswith("1.00 | 0.00")


class Listener(Callback):
    """Notes what it is told; asks to stop, or fails, at a call of that name."""

    def __init__(self, told, stop_at="", fail_at=""):
        self._told, self._stop_at, self._fail_at = told, stop_at, fail_at

    def _note(self, call, *values):
        self._told.append((call, *values))
        if call == self._stop_at:
            raise StopTraining
        if call == self._fail_at:
            raise ValueError(call)

    def on_start(self, step, num_steps):
        self._note("start", step, num_steps)

    def on_progress(self, step, loss, tokens_per_second):
        self._note("progress", step, loss, tokens_per_second > 0)

    def on_step(self, step, metrics):
        self._note("step", step, metrics["loss"])

    def on_evaluation(self, step, metrics):
        self._note("evaluation", step, metrics["validation_loss"])

    def on_checkpoint(self, step):
        self._note("checkpoint", step)

    def on_end(self, complete):
        self._note("end", complete)


def test_callbacks_are_told_what_happens():
    told = []
    with reporting([Listener(told)], start_step=2, num_steps=4) as r:
        r.add_step(3, metrics(1.0), 10)
        r.add_step(4, metrics(2.0), 10)
        r.add_validation(4, 3.0, metrics(1.0).sums)
        r.add_checkpoint(4)
    assert told == [
        ("start", 2, 4),
        ("progress", 3, 1.0, True),
        ("progress", 4, 2.0, True),
        ("step", 4, 1.5),
        ("evaluation", 4, 3.0),
        ("checkpoint", 4),
        ("end", True),
    ]
    assert not r.stop_requested


@pytest.mark.parametrize("call", ["start", "progress", "step", "evaluation", "checkpoint"])
def test_any_callback_may_ask_to_stop_and_the_others_are_told_all_the_same(call):
    told, others = [], []
    with reporting([Listener(told, stop_at=call), Listener(others)]) as r:
        r.add_step(2, metrics(1.0), 10)
        r.add_validation(2, 3.0, metrics(1.0).sums)
        r.add_checkpoint(2)
        assert r.stop_requested
    assert told == others and told[-1] == ("end", False)


def test_callbacks_end_when_one_fails():
    """Also those before one that cannot start; that one itself has nothing to end."""
    told, failing = [], []
    with (
        pytest.raises(ValueError, match="start"),
        reporting([Listener(told), Listener(failing, fail_at="start")]),
    ):
        raise AssertionError("not reached")
    assert told == [("start", 0, 5), ("end", False)] and failing == [("start", 0, 5)]
    with (
        pytest.raises(ValueError, match="end"),
        reporting([Listener(told), Listener([], "", "end")]),
    ):
        told.clear()
    assert told == [("end", False)]
