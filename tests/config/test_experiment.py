"""Experiment files and what the command line changes of them: read, or one line with the place."""

import re

import pytest

from ssjax.config import experiment
from ssjax.errors import UserError

HEAD = "from ssjax import config as config_lib\n"
GOOD = f"""{HEAD}
def get_config(variant="plain"):
    c = config_lib.default_config()
    c.workdir = f"runs/{{variant}}"
    return c
"""


def written(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_and_variants(tmp_path):
    path = written(tmp_path, GOOD)
    assert experiment.load(str(path), {}).workdir == "runs/plain"
    changes = {"train.num_steps": "7", "decode.branching": "3,2", "optimizer.learning_rate": "1"}
    config = experiment.load(f"{path}:wide", changes)
    assert (config.workdir, config.train.num_steps) == ("runs/wide", 7)
    assert (config.decode.branching, config.optimizer.learning_rate) == ((3, 2), 1.0)


@pytest.mark.parametrize(
    ("arguments", "rest", "overrides"),
    [
        (["x", "--config.a.b=1", "--json=o"], ["x", "--json=o"], {"a.b": "1"}),
        (["--config.a", "1", "--config", "f.py"], ["--config", "f.py"], {"a": "1"}),
        (["--config=f.py", "-config.seed=2"], ["--config=f.py"], {"seed": "2"}),
        (["--noconfig.data.packing"], [], {"data.packing": "False"}),
        (["--config.data.packing", "--json=o"], ["--json=o"], {"data.packing": "True"}),
        (["--config.seed=1", "--config.seed=2"], [], {"seed": "2"}),
        (["--config.workdir=a=b"], [], {"workdir": "a=b"}),
    ],
)
def test_overrides_are_taken_out_of_a_command_line(arguments, rest, overrides):
    assert experiment.split_overrides(arguments) == (rest, overrides)


def test_a_key_without_a_value():
    with pytest.raises(UserError, match="--config.seed has no value"):
        experiment.split_overrides(["--config.seed"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config():\n    return nothing\n", "line 2: NameError: name 'nothing'"),
        ("import no_such_module_of_anybody\n", "line 1: ModuleNotFoundError"),
        ("x = 3\ndef get_config(:\n", "line 2: SyntaxError"),
        ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
        ("x = 1\n", "defines no function get_config"),
        ("get_config = 3\n", "defines no function get_config"),
        ("def get_config():\n    return {}\n", "it returns dict"),
        ("def get_config():\n    pass\n", "it returns NoneType"),
        (
            f"{HEAD}def get_config():\n    c = config_lib.default_config()\n    c.nope = 1\n",
            "line 4",
        ),
        (
            f"{HEAD}def get_config():\n    c = config_lib.default_config()\n    c.seed = 'x'\n",
            "line 4: TypeError",
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
            "get_config returns a config without adaptation.alpha; begin with",
        ),
        (
            f"{HEAD}def get_config():\n    c = config_lib.default_config()\n"
            "    with c.unlocked():\n        c.nope = 1\n    return c\n",
            "unknown key nope",
        ),
        (
            f"{HEAD}def get_config():\n    c = config_lib.default_config()\n"
            "    with c.ignore_type():\n        c.seed = 'x'\n    return c\n",
            "seed must be a whole number",
        ),
        ("\0", "null bytes"),
        (
            f"{HEAD}from ml_collections import config_dict\ndef get_config():\n"
            "    c = config_lib.default_config()\n    with c.unlocked():\n"
            "        c.seed = config_dict.required_placeholder(int)\n    return c\n",
            "RequiredValueError",
        ),
    ],
)
def test_a_file_that_cannot_be_used_names_the_place(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        experiment.load(str(path), {})
    assert "\n" not in str(error.value)


def test_what_a_file_derives_follows_the_command_line(tmp_path):
    derived = (
        f"{HEAD}def get_config():\n    c = config_lib.default_config()\n"
        "    c.decode.max_new_tokens = c.data.get_oneway_ref('max_target_length')\n    return c\n"
    )
    config = experiment.load(str(written(tmp_path, derived)), {"data.max_target_length": "7"})
    assert config.decode.max_new_tokens == 7


def test_what_is_no_experiment_file(tmp_path):
    (tmp_path / "text.txt").write_text(GOOD)
    for name, said in (("none.py", "does not exist"), ("", "is a directory")):
        with pytest.raises(UserError, match=said):
            experiment.load(str(tmp_path / name), {})
    with pytest.raises(UserError, match="no Python file"):
        experiment.load(str(tmp_path / "text.txt"), {})
    path = written(tmp_path, f"{HEAD}def get_config():\n    return config_lib.default_config()\n")
    with pytest.raises(UserError, match="mine.py: TypeError: get_config"):
        experiment.load(f"{path}:variant", {})
    with pytest.raises(UserError, match="unknown key nope"):
        experiment.load(str(path), {"nope": "1"})
