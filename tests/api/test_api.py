"""What `import ssjax` gives: exactly the public names, their documented examples, nothing heavy."""

import doctest
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import ssjax
from ssjax.config import Config, default_config
from ssjax.data import tasks

ROOT = Path(__file__).parents[2]
# In this order: one example opens what the one before it trained.
WITH_EXAMPLES = (
    "register_task",
    "Callback",
    "StopTraining",
    "train",
    "load",
    "Run",
    "Answer",
    "UserError",
)


def test_dir_lists_the_public_names():
    assert dir(ssjax) == sorted(ssjax.__all__)
    assert all(getattr(ssjax, name) is not None for name in ssjax.__all__)
    assert all(getattr(ssjax, name).__name__ == name for name in ssjax._HOMES)
    assert ssjax.__version__ == importlib.metadata.version("ssjax")
    with pytest.raises(AttributeError, match="'ssjax' has no attribute 'lode'"):
        ssjax.lode  # noqa: B018
    assert (ROOT / "ssjax" / "py.typed").exists()


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "_OWN", {})
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)  # as a laptop has it
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in WITH_EXAMPLES:
        public = getattr(ssjax, name)
        names = vars(importlib.import_module(public.__module__)) | {"ssjax": ssjax}
        [example] = finder.find(public, name, globs=names)
        assert example.examples, name
        assert runner.run(example).failed == 0, name


def test_every_public_name_has_an_example():
    assert {*ssjax.__all__} - {"__version__"} == set(WITH_EXAMPLES)


def test_a_config_that_cannot_be_is_one_error():
    editable = default_config()
    editable.workdir = ""
    for config in (Config(workdir=""), editable):
        with pytest.raises(ssjax.UserError, match="workdir is empty"):
            ssjax.train(config)


def test_the_name_of_load_in_older_scripts(capsys):
    assert ssjax.load_run is ssjax.load and "load_run" not in dir(ssjax)
    assert "is called ssjax.load now" in capsys.readouterr().err


def test_import_is_light():
    """`ssjax.train` stays the function when the verb of that name runs."""
    code = (
        "import sys, ssjax\n"
        "heavy = {'jax', 'flax', 'orbax', 'sentencepiece', 'ml_collections', 'tokenizers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
