"""The commands and the Python of the documentation, run as they are typed, on tiny models.

What a page marks with "needs ..." is left out: hardware, published data, the network. The sample
model is its variant `smoke`, and fine-tunes are short.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import verb_server
from documentation import PLACEHOLDER, ROOT, Command, blocks, commands, verb_of

pytestmark = pytest.mark.stress

GIVEN = {
    "ADAPTED": "runs/orders",
    "BASE": "base",
    "FILE": "experiments/dialogsum.py:smoke",
    "PROMPTS.jsonl": "prompts.jsonl",
    "RUN": "runs/dialogsum",
}
# Typed in place of a word.
INSTEAD = {
    "experiments/dialogsum.py": "experiments/dialogsum.py:smoke --config.workdir=runs/dialogsum",
}
SHORT = "--config.train.num_steps=40 --config.eval.max_records=4"
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/faster.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "guides").glob("*.md")),
]


def shell(line: str, directory: Path) -> None:
    """Runs a line as a shell in a directory does, and fails where it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=directory,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, f"{line}\n{finished.stdout[-2000:]}\n{finished.stderr[-2000:]}"


def typed(command: Command) -> str:
    """A command with what a reader puts in, at the size of a test."""
    words = [GIVEN.get(word, INSTEAD.get(word, word)) for word in command.text.split(" ")]
    if verb_of(command) == "train" and "orders.py" in words:
        words.append(SHORT)
    return " ".join(words)


def run_commands(page: Path, directory: Path) -> int:
    """Runs the commands of ours on a page that need nothing; returns how many."""
    chosen = [each for each in commands(page) if verb_of(each) in verb_server.VERBS]
    chosen = [each for each in chosen if not each.needs]
    for command in chosen:
        left = [word for word in command.words if PLACEHOLDER.fullmatch(word)]
        assert set(left) <= set(GIVEN), f"{command} needs {left} and does not say so"
        shell(typed(command), directory)
    return len(chosen)


def run_python(page: Path, directory: Path) -> None:
    """Runs the blocks of Python without a title as one program."""
    parts = [content for title, content in blocks(page, "python") if not title]
    lines = "".join(parts).splitlines(keepends=True)
    program = directory / "program.py"
    program.write_text("".join(line for line in lines if "# needs " not in line))
    shell(f"python {program.name}", directory)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory in which the tutorial has been followed to its end."""
    directory = tmp_path_factory.mktemp("world")
    (directory / "experiments").symlink_to(ROOT / "experiments")
    prompt = {"prompt": "#Person1#: Hello."}
    (directory / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    tutorial = ROOT / "docs" / "tutorial.md"
    for title, content in blocks(tutorial, "python"):
        if title:
            (directory / title).write_text(content)
    shell("python make_data.py", directory)
    assert run_commands(tutorial, directory) >= 8
    return directory


def test_the_tutorial(world):
    run_python(ROOT / "docs" / "tutorial.md", world)


@pytest.mark.parametrize("page", PAGES)
def test_commands(world, page):
    run_commands(ROOT / page, world)


@pytest.mark.parametrize("page", ["README.md", "docs/guides/python.md"])
def test_python(world, page):
    run_python(ROOT / page, world)
