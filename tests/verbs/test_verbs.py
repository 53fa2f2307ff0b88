"""The list of verbs, the verb that is run, what --help says of each, and how FILE may be given."""

import ast
import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import verb_server

from ssjax import __main__
from ssjax.cli import verbs
from ssjax.config import Config, descriptions, ranges

ROOT = Path(__file__).parents[2]
SMOKE = "experiments/dialogsum.py:smoke"


def call(verb, *arguments):
    return verb_server.server(JAX_DISABLE_MOST_OPTIMIZATIONS="1", HF_HUB_OFFLINE="1").call(
        verb, arguments
    )


def flags_of(verb):
    """Names in the calls of a verb's file that define flags of its own."""
    for node in ast.walk(ast.parse((ROOT / "ssjax" / f"{verb}.py").read_text())):
        name = getattr(getattr(node, "func", None), "attr", "")
        if name.startswith(("DEFINE_", "define_")) and node.args:
            yield node.args[0].value


def test_every_verb_is_listed_with_what_it_does(capsys):
    files = [path for path in (ROOT / "ssjax").glob("*.py") if "__main__" in path.read_text()]
    assert {path.stem for path in files} == {*verbs.VERBS, "__main__"}
    assert verbs.run([]) == verbs.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in verbs.VERBS:
        assert f"\n  {verb:9}  {verbs.summary(verb)}\n" in shown and verbs.summary(verb)
    assert max(map(len, shown.splitlines())) <= 100


def test_the_console_script_is_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ssjax": f"{__main__.__name__}:{__main__.main.__name__}"}


def test_an_unknown_verb_is_one_line(capsys):
    for verb, said in (("trian", "did you mean train?"), ("x", "choose one of train, evaluate,")):
        assert verbs.run([verb, "--json=x"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: unknown verb {verb!r}; {said}") and told.count("\n") == 1


def test_a_verb_runs_as_if_it_were_called_itself_and_its_list_needs_no_jax(tmp_path):
    """And `ssjax.train` stays the function where the verb of that name has run.

    The training would be scored by what is not installed: it does not begin.
    """
    script = (
        "import sys, ssjax\n"
        "sys.modules['sacrebleu'] = None\n"
        "from ssjax.cli import verbs\n"
        "verbs.listing()\n"
        "assert not {'jax', 'absl'} & set(sys.modules)\n"
        "try:\n"
        "    verbs.run(['train', 'experiments/e2e_nlg.py:smoke', *sys.argv[1:]])\n"
        "finally:\n"
        "    assert 'jax' in sys.modules and ssjax.train.__module__ == 'ssjax'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: bleu, by which this task is scored, needs sacrebleu; run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_help_has_every_flag_of_the_verb_and_none_of_the_libraries(verb):
    ended = call(verb, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = ended.stdout.replace("--[no]", "--")
    assert shown.startswith(verbs.summary(verb))
    names = {line.split()[0].partition("=")[0] for line in shown.splitlines() if "  --" in line[:4]}
    own = {f"--{name}" for name in flags_of(verb)}
    assert own and own <= names and {"--json", "--report", "--target"} & names
    assert ("--workdir" in names) == (verb != "convert")
    assert not {"--verbosity", "--only_check_args", "--flagfile", "--config.seed"} & names
    keys = [f"\n    --config.{key}=" in shown for key in ranges.keys(Config)]
    assert all(keys) if verb in ("train", "distill", "show", "plan") else not any(keys)


def test_every_key_is_explained():
    """By a comment beside it, or by name in the docstring of its group."""
    groups = list(descriptions.describe(Config))
    keys = {key.name: key for group in groups for key in group.keys}
    assert list(keys) == [key for key in ranges.keys(Config) if "." not in key] + [
        key for key in ranges.keys(Config) if "." in key
    ]
    for group in groups:
        assert group.meaning, group.name
        for key in group.keys:
            last = key.name.rpartition(".")[2]
            assert key.meaning or last in group.meaning, key.name
    assert keys["data.length_buckets"].meaning.startswith("Widths of rows below the greatest: bat")
    assert keys["adaptation.targets"].meaning == "those that the model has"
    assert keys["optimizer.beta2"].wanted == "a number of at least 0 and below 1"
    assert keys["decode.seed"].wanted == "a whole number"
    assert keys["train.num_steps"].wanted == "a whole number from 1 up"
    assert keys["mesh.data"].default == -1


def test_comments_are_read_where_they_stand():
    @dataclasses.dataclass
    class Settings:
        """Of this test."""

        # Above, in
        # two lines.
        a: int = 1
        b: int = 2  # beside, # twice
        c: str = "# no comment"

    assert descriptions.comments_of(Settings) == {
        "a": "Above, in two lines.",
        "b": "beside, # twice",
    }


def test_an_experiment_and_a_directory_may_be_named_in_short(tmp_path):
    data = f"--config.data.path={tmp_path / 'missing'}"
    for arguments, said in (
        ((SMOKE, data), "missing"),
        ((data, SMOKE, "--workdir", tmp_path / "a"), "missing"),
        ((SMOKE, data, "--workdir=a", "--config.workdir=a"), "missing"),
        ((SMOKE, "--workdir=a", "--config.workdir=b"), "--workdir=a and --config.workdir=b are"),
        ((SMOKE, "more"), "unexpected argument 'more'"),
        ((f"--config={SMOKE}", SMOKE), "unexpected argument 'experiments/dialogsum.py:smoke'"),
        (("--workdir=a",), "no experiment; give one with --config"),
    ):
        ended = call("train", *arguments)
        [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert ended.returncode == 2 and said in line, ended.stderr
