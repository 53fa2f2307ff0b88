"""Checkpoints and metrics in a bucket, written by processes that are killed at random moments.

Against an emulator of Cloud Storage on loopback; a real bucket was never tried.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import buckets
import pytest

from ssjax.files import manifest, places
from ssjax.training.metric_parts import read_parts
from ssjax.weights.saved_steps import steps

pytest.importorskip("gcp_storage_emulator", reason="the emulator of Cloud Storage is not installed")
pytest.importorskip("gcsfs", reason="gcsfs, which reads gs://, is not installed")

pytestmark = pytest.mark.stress

NUM_KILLS = 10


def test_nothing_is_lost_and_nothing_is_half_read(monkeypatch):
    run = places.of("gs://bucket/run")
    with buckets.emulator() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        places._store.cache_clear()
        done = subprocess.run(
            [
                sys.executable,
                Path(__file__).with_name("kill_savers.py"),
                str(run),
                str(NUM_KILLS),
                "0",
            ],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        lines = found["lines"]
        assert (found["code"], lines.count("killed")) == (0, NUM_KILLS), done.stderr
        during = sum(
            b == "killed" and a.startswith("saving") for a, b in zip(lines, lines[1:], strict=False)
        )
        assert 3 <= during <= NUM_KILLS, lines
        assert "Traceback" not in done.stderr and "is damaged" not in done.stderr

        saved = 0  # what was told to be whole is where the next start goes on, or later
        for line in lines:
            word, _, number = line.partition(" ")
            if word == "from":
                assert int(number) >= saved
            saved = int(number) if word == "saved" else saved

        directory = run / "checkpoints"
        there = sorted(int(path.name) for path in directory.iterdir())
        assert there == steps(directory) and there[-1] == found["last"] and len(there) <= 3
        assert [manifest.damage(directory / str(step)) for step in there] == [""] * len(there)
        records = read_parts(run / "metrics")
        assert [record["step"] for record in records] == list(range(1, found["last"] + 1))
    places._store.cache_clear()
