"""What a run keeps in a bucket: metrics in parts, a note in place of a lock, committed steps."""

import json
import os

import pytest

from ssjax.errors import UserError
from ssjax.files import places
from ssjax.training import lock
from ssjax.training.metric_parts import MetricParts, read_parts
from ssjax.training.records import keep_records
from ssjax.weights import checkpoint, saved_steps

RUN = places.of("gs://bucket/run")


def steps_of(records):
    return [(record["step"], record["loss"]) for record in records]


def started(step, losses):
    """A start that goes on from a step and tells of these losses."""
    parts = MetricParts(RUN / "metrics")
    parts.on_start(step, 9)
    for number, loss in enumerate(losses, start=step + 1):
        parts.on_step(number, {"loss": loss})
    return parts


def test_records_of_a_start_are_one_object_put_with_every_checkpoint(bucket):
    parts = started(0, [1.0, 2.0])
    assert not bucket  # nothing is put for a record alone
    parts.on_saving(2)
    assert list(bucket) == ["/bucket/run/metrics/00001-after-0.jsonl"]
    parts.on_evaluation(2, {"loss": 2.5})
    parts.on_summary(2, {"loss": 2.75})
    parts.on_end(True)
    assert steps_of(read_parts(RUN / "metrics")) == [(1, 1.0), (2, 2.0), (2, 2.5), (2, 2.75)]
    assert len(bucket) == 1


def test_records_that_were_lost_with_a_kill_are_told_once(bucket):
    started(0, [1.0, 2.0, 3.0]).on_saving(3)
    started(2, [30.0, 40.0])  # killed before it saved: nothing of it is there
    assert steps_of(read_parts(RUN / "metrics"))[-1] == (3, 3.0)
    started(2, [30.0, 40.0, 50.0]).on_saving(5)
    started(4, [500.0]).on_end(False)
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 500.0)]
    assert steps_of(read_parts(RUN / "metrics")) == expected
    names = [path.name for path in (RUN / "metrics").iterdir()]
    assert names == ["00001-after-0.jsonl", "00002-after-2.jsonl", "00003-after-4.jsonl"]


def test_a_minute_after_the_last_put_a_record_is_put(bucket, monkeypatch):
    parts = MetricParts(RUN / "metrics")
    parts.on_start(0, 9)
    monkeypatch.setattr("ssjax.training.metric_parts._SECONDS", 0.0)
    parts.on_step(1, {"loss": 1.0})
    assert steps_of(read_parts(RUN / "metrics")) == [(1, 1.0)]


def test_a_run_in_a_bucket_keeps_parts_alone(bucket):
    assert type(keep_records(RUN)) is MetricParts


def test_a_bucket_has_a_note_in_place_of_a_lock(bucket, capsys):
    with lock.hold(RUN):
        assert json.loads((RUN / "lock").read_bytes())["pid"] == os.getpid()
    assert not bucket
    assert "gs://bucket/run/lock: a bucket has no locks, so nothing" in capsys.readouterr().err
    note = {"pid": 7, "host": "elsewhere", "since": "yesterday"}
    (RUN / "lock").write_bytes(json.dumps(note).encode())
    with pytest.raises(RuntimeError), lock.hold(RUN):
        raise RuntimeError
    said = capsys.readouterr().err
    assert "left by process 7, there since yesterday on elsewhere; a bucket has no locks" in said
    assert not bucket


def test_only_committed_steps_of_a_bucket_are_there(bucket):
    directory = RUN / "checkpoints"
    assert saved_steps.steps(directory) == []
    for name in ("2/manifest.json", "2/commit_success.txt", "4/manifest.json", "x/y"):
        (directory / name).write_bytes(b"{}")
    assert saved_steps.steps(directory) == [2]
    assert saved_steps.find_step(directory, "latest") == 2
    with pytest.raises(UserError, match="no checkpoint '4' in gs://bucket/run/checkpoints; steps"):
        saved_steps.find_step(directory, "4")


def test_arrays_are_kept_in_buckets_of_one_kind():
    with pytest.raises(UserError, match="^s3://bucket/m: arrays are kept on disks and in gs://"):
        checkpoint._address(places.of("s3://bucket/m"))
