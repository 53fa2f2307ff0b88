"""Metrics: means by name, files that continue, divergence."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssjax.errors import DivergedError, UserError
from ssjax.training.losses import LossSums
from ssjax.training.reporting import Reporter, loss_record
from ssjax.training.step import StepMetrics


def metrics(loss, weight=2.0):
    sums = LossSums(
        np.array([loss, 2 * loss]) * weight, np.array([weight, 0.0]), np.array([weight, weight])
    )
    return StepMetrics(sums, np.float32(loss), np.float32(1.0))


def reporter(workdir, start_step=0, log_every=2, num_steps=5):
    return Reporter(
        workdir,
        start_step=start_step,
        num_steps=num_steps,
        log_every=log_every,
        schedule=lambda step: step / 10,
        names=("main", "stream_1"),
    )


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_means_are_weighted_over_steps(tmp_path):
    with reporter(tmp_path) as r:
        r.add_step(1, metrics(1.0, weight=1.0), 10)
        r.add_step(2, metrics(4.0, weight=3.0), 10)
        r.add_step(3, metrics(5.0), 10)
    [record] = records(tmp_path)
    assert record["step"] == 2 and record["learning_rate"] == 0.1
    assert record["loss_main"] == pytest.approx((1 * 1 + 4 * 3) / 4)
    assert record["loss_stream_1"] == pytest.approx(2 * (1 * 1 + 4 * 3) / 4)
    assert (record["accuracy_main"], record["accuracy_stream_1"]) == (1.0, 0.0)


def test_no_targets_is_zero_not_nan():
    zero = np.zeros(2)
    assert set(loss_record(LossSums(zero, zero, zero), ("main", "stream_1")).values()) == {0.0}


def test_records_behind_the_restored_step_go(tmp_path):
    with reporter(tmp_path, log_every=1) as r:
        for step in range(1, 5):
            r.add_step(step, metrics(1.0), 10)
        r.add_validation(4, 1.0, metrics(1.0).sums)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut short by a kill
    with reporter(tmp_path, start_step=2, log_every=1) as r:
        r.add_step(3, metrics(7.0), 10)
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]
    assert records(tmp_path)[-1]["loss"] == 7.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_step_blames_the_weights_later_ones_the_optimizer(tmp_path, bad):
    with reporter(tmp_path) as r:
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
    with reporter(tmp_path, log_every=1) as r:
        r._file.close()
        r._file = full.open("a")
        with pytest.raises(UserError, match="cannot write /dev/full: No space left"):
            r.add_step(1, metrics(1.0), 10)


def test_damaged_records_are_passed_over(tmp_path):
    lines = [b'{"step": 1}', b'{"step": \xff}', b"[]", b"7", b'{"step": "x"}', b'{"step": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with reporter(tmp_path, start_step=2):
        assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_plain_lines_show_loss_speed_and_time_left(tmp_path, capsys):
    with reporter(tmp_path) as r:
        r.add_step(1, metrics(1.0), 10)
        r.add_step(2, metrics(1.0), 10)
    line = capsys.readouterr().err
    assert "step 2/5" in line and "loss 1.000" in line
    assert "tokens/s" in line and "s left" in line


def test_tensorboard_if_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    with reporter(tmp_path) as r:
        r.add_step(2, metrics(1.0), 10)
    [file] = (tmp_path / "tensorboard").iterdir()
    assert b"accuracy_stream_1" in file.read_bytes()
