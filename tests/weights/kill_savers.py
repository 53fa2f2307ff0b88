"""Saves checkpoints to a bucket step by step, killed again and again at random moments.

python kill_savers.py gs://BUCKET/RUN NUM_KILLS SEED > JSON

Every start is a fork of this process, which has imported everything and started nothing.
"""

import json
import os
import random
import signal
import sys
import time
import traceback

import gcsfs  # noqa: F401, what every start would import
import jax.numpy as jnp
import numpy as np

from ssjax.files import places
from ssjax.training.metric_parts import MetricParts
from ssjax.training.step import TrainState
from ssjax.weights import checkpoint


def state_of(step):
    return TrainState(jnp.asarray(step, jnp.int32), {"w": jnp.full((64, 64), float(step))}, {})


def save_on(run, num_steps, tell):
    """Goes on from the last whole checkpoint, a save and a record a step; tells of both."""
    directory = run / "checkpoints"
    restored = checkpoint.restore(directory, state_of(0))
    step = 0 if restored is None else int(restored[0].step)
    if restored is not None:
        np.testing.assert_array_equal(restored[0].params["w"], np.full((64, 64), float(step)))
        assert restored[1] == {"next_batch": step}
    tell(f"from {step}")
    parts = MetricParts(run / "metrics")
    parts.on_start(step, num_steps)
    with checkpoint.Checkpoints(
        directory, keep_latest=2, keep_every=0, keep_best=1, best_by="validation_loss", about={}
    ) as checkpoints:
        for now in range(step + 1, num_steps + 1):
            parts.on_step(now, {"loss": 1.0 / now})
            parts.on_saving(now)
            tell(f"saving {now}")
            checkpoints.save(
                state_of(now),
                data={"next_batch": now},
                config={"a": 1},
                tokenizer={"t": b"x"},
                measured={"validation_loss": 1.0 / now},
            )
            checkpoints.wait()
            tell(f"saved {now}")
    parts.on_end(True)


def start(run, num_steps):
    """Forks; returns the process and what it tells."""
    heard, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, os.fdopen(heard)
    try:
        save_on(run, num_steps, lambda line: os.write(told, f"{line}\n".encode()))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main():
    address, num_kills, seed = sys.argv[1:]
    run, rng, lines = places.of(address), random.Random(int(seed)), []
    for number in range(int(num_kills)):
        pid, heard = start(run, 1000)
        begun = 0
        for line in heard:  # until the save during or after which it is killed
            lines.append(line.strip())
            begun += line.startswith("saving")
            if begun == 1 + number % 2:
                break
        time.sleep(rng.uniform(0.0, 3.0))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        lines += [*map(str.strip, heard), "killed"]
    last = max(int(line.split()[1]) for line in lines if line.startswith("saving"))
    pid, heard = start(run, last + 1)
    lines += map(str.strip, heard)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"lines": lines, "code": code, "last": last + 1}))


if __name__ == "__main__":
    main()
