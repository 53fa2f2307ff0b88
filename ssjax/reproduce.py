"""Runs the paper's comparison: trains the models of a suite, measures, writes the report.

    python -m ssjax.reproduce --suite small --data_path DATA --workdir DIR
    python -m ssjax.reproduce --suite small --workdir DIR --only_report   (of what there is)
    python -m ssjax.reproduce --suite smoke --workdir DIR                 (minutes, no data)
    python -m ssjax.reproduce --suite small --workdir DIR --tasks e2e_nlg --untimed

DATA holds e2e_nlg/, dialogsum/ and sql_context/ with their published files. To be run in the
checkout, where experiments/ lies. What is trained and compared: ssjax/study/suites.py. Every step
is a command of this package in a process of its own; its output goes to DIR/TASK/STEP.log, its
result to DIR/TASK/STEP.json, and the same command continues where the last one stopped, inside a
training too. With --untimed it leaves out what needs the machine to itself, so that a process for
each task can train beside the others; the same command without it does the rest. The report is
written from those files alone, finished or not.
"""

from pathlib import Path

from absl import flags

from ssjax.cli import command_line, options, start
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.writing import make_directory
from ssjax.study import page, suites
from ssjax.study.steps import experiment_of, run, steps
from ssjax.study.suites import TaskStudy

_SUITE = command_line.require(flags.DEFINE_enum("suite", None, list(suites.SUITES), "What is run."))
_WORKDIR = command_line.require(flags.DEFINE_string("workdir", None, "Where everything is kept."))
_DATA = flags.DEFINE_string("data_path", "", "Holds a directory for each task.")
_TASKS = flags.DEFINE_list("tasks", [], "Only these; default: all of the suite.")
_REPORT = options.define_output(
    "report",
    "Markdown file to write; its JSON and pictures go to a directory of its name. Default: "
    "docs/results.md for the suite small, results.md in the work directory for others.",
)
_ONLY_REPORT = flags.DEFINE_bool("only_report", False, "Run nothing, report what there is.")
_UNTIMED = flags.DEFINE_bool("untimed", False, "Train and certify, time nothing.")


def main() -> int:
    """Runs the suite of the command line; returns the exit code."""
    suite = {task.task: task for task in suites.SUITES[_SUITE.value]}
    unknown = [name for name in _TASKS.value if name not in suite]
    if unknown:
        raise UserError(f"--tasks: {unknown[0]!r} is none of {', '.join(suite)}")
    chosen = [suite[name] for name in _TASKS.value or suite]
    root = places.on_disk(_WORKDIR.value, "--workdir").absolute()
    code = 0
    if not _ONLY_REPORT.value:
        code = _run_all(chosen, root)
    if code == 0:
        default = "docs/results.md" if _SUITE.value == "small" else root / "results.md"
        report = Path(_REPORT.value or default)
        page.write(report, root, list(suite.values()), _SUITE.value)
        print(f"report: {report}")
    return code


def _run_all(chosen: list[TaskStudy], root: Path) -> int:
    for task in chosen:
        if not Path(experiment_of(task).partition(":")[0]).is_file():
            raise UserError(f"{experiment_of(task)} is not here; run this in the checkout of ssjax")
        if task.variant != "smoke" and not (Path(_DATA.value) / task.task).is_dir():
            raise UserError(
                f"--data_path {_DATA.value or '(none)'} has no directory {task.task}; give the "
                "directory that holds e2e_nlg/, dialogsum/ and sql_context/"
            )
    # What is compared comes first in every task.
    for trainings in (suites.models, suites.ablations):
        for task in chosen:
            directory = root / task.task
            make_directory(directory)
            for step in steps(task, trainings(task), directory, _DATA.value):
                if _UNTIMED.value and step.arguments[0] == "benchmark":
                    continue
                code = 0 if step.result.exists() else run(step, directory, _DATA.value)
                if code:
                    return code
    return 0


if __name__ == "__main__":
    start.run(main)
