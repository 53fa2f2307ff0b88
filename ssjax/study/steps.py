"""The commands of a study, each done in a process of its own once its result is there."""

import dataclasses
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssjax import messages
from ssjax.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, UserError
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic
from ssjax.study import suites
from ssjax.study.suites import TaskStudy, Training


@dataclasses.dataclass(frozen=True)
class Step:
    """One command; done when its result is there."""

    name: str  # of its result and log
    arguments: tuple[str, ...]  # after `python -m ssjax.`
    result: Path


def experiment_of(task: TaskStudy) -> str:
    """As --config wants it."""
    return f"experiments/{task.task}.py:{task.variant}"


def steps(
    task: TaskStudy, trainings: Sequence[Training], directory: Path, data_path: str
) -> Iterator[Step]:
    """The commands of some trainings of a task in order, and of decoding with what they trained.

    Args:
      task: its study.
      trainings: all models that are compared, or ablations.
      directory: of its results.
      data_path: holds a directory for the task; empty: it needs none.
    """
    runs = {model.name: str(directory / model.name) for model in trainings}
    base = directory / "base-model"
    for model in trainings:
        overrides = dict(model.overrides) | {"train.num_steps": model.steps}
        if model.on_base:
            overrides["model.pretrained"] = base
        elif model.name != "base":
            overrides["data.tokenizer"] = runs["base"]
        if data_path and task.variant != "smoke":
            overrides["data.path"] = Path(data_path).absolute() / task.task
        overrides |= {
            "workdir": runs[model.name],
            "data.prepared_dir": directory / "data",
            "eval.max_records": 8,  # decoded for a first look; what counts is the benchmark
        }
        options = [f"--config.{key}={value}" for key, value in overrides.items()]
        result = directory / f"train-{model.name}.json"
        train = ("train", f"--config={experiment_of(task)}", *options, f"--json={result}")
        yield Step(result.stem, train, result)
        if model.name == "base":
            export = ("export", f"--workdir={runs['base']}", "--format=orbax", f"--target={base}")
            yield Step("export-base", export, base)
    for model in trainings:
        workdir = f"--workdir={runs[model.name]}"
        if model.name in ("base", "draft", "medusa", "medusa-parent"):
            continue  # decoded as targets or drafters of others
        if model.name in ("shared", "lossless", "detached"):
            result = directory / f"verify-{model.name}.json"
            verify = ("verify", workdir, "--num_prompts=40", f"--json={result}")
            yield Step(result.stem, verify, result)
        result = directory / f"benchmark-{model.name}.json"
        compared = ",".join(suites.drafters(task, model.name, runs)) or "plain"
        options = (f"--drafters={compared}", f"--num_prompts={task.prompts}", f"--json={result}")
        yield Step(result.stem, ("benchmark", workdir, *options), result)


def run(step: Step, directory: Path, data_path: str) -> int:
    """Runs a step in a process; returns the exit code of this one, 0 to go on.

    Raises:
      UserError: the command failed.
    """
    command = [sys.executable, "-m", f"ssjax.{step.arguments[0]}", *step.arguments[1:]]
    messages.say(f"{directory.name}: {step.name}")
    log = directory / f"{step.name}.log"
    began = time.time()
    with log.open("a") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        # A signal to this process alone reaches the child too, which saves and says 42.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: child.send_signal(number))
        code = child.wait()
    _note(directory, step, data_path, time.time() - began)
    if code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) or code < 0:
        messages.say("stopped; the same command continues")
        return EXIT_RESUMABLE
    # A certificate that does not hold is a result, exit code 1.
    if code and not (step.arguments[0] == "verify" and step.result.exists()):
        lines = log.read_text().strip().splitlines()
        raise UserError(
            f"{directory.name}: {step.name} failed: {lines[-1] if lines else 'no output'} "
            f"(see {log}); mend it and run the same command again"
        )
    return 0


def _note(directory: Path, step: Step, data_path: str, seconds: float) -> None:
    """Adds the time of a step to steps.json, with the command and what ran it.

    The command has DIR and DATA for the directories, so that it reads the same on any machine.
    """
    path = directory / "steps.json"
    noted = read_json_object(path, "remove it") if path.exists() else {}
    command = " ".join(("python -m ssjax." + step.arguments[0], *step.arguments[1:]))
    command = command.replace(str(directory.parent), "DIR")
    if data_path:
        command = command.replace(str(Path(data_path).absolute()), "DATA")
    before = noted.get(step.name)
    seconds += before.get("seconds", 0.0) if isinstance(before, dict) else 0.0
    noted[step.name] = {
        "command": command,
        "seconds": seconds,
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores ({_processor()}), Python {platform.python_version()}",
    }
    write_atomic(path, to_json(noted))


def _processor() -> str:
    """Its name where Linux tells, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Of the checkout, with a mark if it was changed; empty where there is no git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return described.stdout.strip()
