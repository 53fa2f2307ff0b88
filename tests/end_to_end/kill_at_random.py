"""Trains one run while killing it again and again, and the same run in peace.

python kill_at_random.py WORKDIR NUM_KILLS SEED ARGUMENT... > JSON

The runs are WORKDIR/killed and WORKDIR/peace; with BUCKET_RUNS=gs://BUCKET/NAME they lie there, and
the bucket is watched in its emulator.

Every start is a fork of this process, which has imported everything but touched no device:
a start then costs no imports. Two kills in five come when a save begins.
"""

import json
import os
import random
import runpy
import signal
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from ssjax.evaluation import report  # noqa: F401, with all that a training imports


def start(arguments: list[str], log: Path) -> int:
    """Forks a trainer; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["ssjax.train", *arguments]
    try:
        runpy.run_module("ssjax.train", run_name="__main__", alter_sys=True)
    except SystemExit as done:
        sys.stdout.flush()
        os._exit(done.code or 0)
    os._exit(1)


def objects(workdir: str) -> dict[str, dict[str, str]]:
    """Of each checkpoint in a bucket when its objects came, by their names in it."""
    bucket, _, name = workdir.removeprefix("gs://").partition("/")
    prefix = urllib.parse.quote(f"{name}/checkpoints/", safe="")
    host = os.environ["STORAGE_EMULATOR_HOST"]
    with urllib.request.urlopen(f"{host}/storage/v1/b/{bucket}/o?prefix={prefix}") as answer:
        items = json.load(answer)["items"]
    found: dict[str, dict[str, str]] = {}
    for item in items:
        step, _, rest = item["name"].removeprefix(f"{name}/checkpoints/").partition("/")
        if step.isdigit():
            found.setdefault(step, {})[rest] = item["timeCreated"]
    return found


def unfinished(workdir: Path | str) -> set:
    """What a save under way, or one that was killed, has there, each told from all others."""
    if isinstance(workdir, str):
        return {
            (step, min(there.values()))
            for step, there in objects(workdir).items()
            if "commit_success.txt" not in there
        }
    found = set()
    for path in workdir.glob("checkpoints/*tmp*"):
        try:
            found.add(path.stat().st_ino)
        except FileNotFoundError:  # finished just now
            continue
    return found


def finished(workdir: Path | str) -> int:
    """The last step that is saved whole."""
    if isinstance(workdir, str):
        whole = [s for s, there in objects(workdir).items() if "commit_success.txt" in there]
        return max(map(int, whole), default=0)
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill_once(pid: int, workdir: Path | str, rng: random.Random, when: str) -> str:
    """Waits for the moment and kills; returns whether a save was under way, or the run at its end.

    Args:
      pid: of the trainer.
      workdir: of the run.
      rng: decides the moment.
      when: "starting" (within a second or two), "saving" (right after the beginning of a
        save) or "running" (up to a second after the end of the first save).
    """
    before, saved = unfinished(workdir), finished(workdir)
    if when == "starting":
        time.sleep(rng.uniform(0.0, 2.0))
    while when != "starting":
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return "ended"
        if when == "saving" and unfinished(workdir) - before:
            time.sleep(rng.uniform(0.0, 0.3 if isinstance(workdir, str) else 0.02))
            break
        if when == "running" and finished(workdir) > saved:
            time.sleep(rng.uniform(0.0, 1.0))
            break
        time.sleep(0.02 if isinstance(workdir, str) else 0.001)
    moment = "saving" if unfinished(workdir) - before else "between"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return moment


def main() -> None:
    directory, num_kills, seed, *arguments = sys.argv[1:]
    rng, log = random.Random(int(seed)), Path(directory) / "log"
    codes, moments = {}, []
    address = os.environ.get("BUCKET_RUNS")
    runs = {
        name: f"{address}/{name}" if address else Path(directory) / name
        for name in ("killed", "peace")
    }
    for number in range(int(num_kills)):
        pid = start([*arguments, f"--config.workdir={runs['killed']}"], log)
        when = ("saving", "running", "starting", "saving", "running")[number % 5]
        moments.append(kill_once(pid, runs["killed"], rng, when))
    for name, run in runs.items():
        pid = start([*arguments, f"--config.workdir={run}"], log)
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"moments": moments, "codes": codes}))


if __name__ == "__main__":
    main()
