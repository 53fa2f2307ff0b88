"""The command line that all verbs share."""

import errno
import json
import os
import subprocess
import sys

import pytest
from absl import flags

from ssjax.cli import command_line, model_flags, options, start
from ssjax.errors import EXIT_CLOSED_PIPE, DamagedError, DivergedError, UserError

flags.DEFINE_list("sizes_of_tests", [], "Only for these tests.")


def test_flags_may_be_written_with_dashes_and_values_stay_as_they_are():
    written = ["x", "--sizes-of-tests=a-b,c", "--config.data-x=y-z", "--no such-thing", "-v", "a-b"]
    kept = [command_line.underscored(argument) for argument in written]
    assert kept == ["x", "--sizes_of_tests=a-b,c", *written[2:]]


class Holder:
    """A flag as the functions see it."""

    name = "batch_sizes"

    def __init__(self, *value):
        self.value = list(value)


def test_lists_of_counts():
    assert options.counts(Holder("4", " 1 ", "4")) == [1, 4]
    for texts in ([], ["0"], ["-1"], ["1.5"], [""], ["\u0664"], ["\u00b2"], ["9" * 5000], ["two"]):
        with pytest.raises(UserError, match="--batch_sizes=.* must be positive whole numbers"):
            options.counts(Holder(*texts))


@pytest.mark.parametrize("sizes", ["1,1", "1,0,1", "0,-1,1", "-1,-1,1", "a,1,1", "1,1,\u0661"])
def test_a_mesh_that_cannot_be(sizes):
    with pytest.raises(UserError, match=f"--mesh={sizes} must be three sizes"):
        model_flags.open_mesh(sizes.split(","))


def test_settings_on_the_command_line_have_their_ranges():
    class Given:
        def __init__(self, value):
            self.value = value

    assert options.given({"top_k": Given(3), "stop": Given(["a"]), "top_p": Given(None)}) == {
        "top_k": 3,
        "stop": ("a",),
    }
    with pytest.raises(UserError, match="decode.presence_penalty must be a number"):
        options.given({"presence_penalty": Given(float("nan"))})


def test_a_result_may_name_a_path_that_is_no_text(tmp_path):
    options.write_json(str(tmp_path / "result.json"), {"workdir": "run\udcff", "text": "é"})
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "workdir": "run\udcff",
        "text": "é",
    }


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a\nb"), 2, "error: a b\n"),
        (DamagedError("step 3"), 3, "error: step 3\n"),
        (DivergedError("step 3"), 4, "error: step 3\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), 2, "error: x/y: No space left"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "error: Too many open files"),
        (MemoryError(), 2, "error: not enough memory (of the host)"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(monkeypatch, capsys, error, code, said):
    monkeypatch.setattr(command_line, "_outputs", [])
    assert start.guard(raising(error)) == code
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("ours"), AssertionError("ours"), KeyError("ours")])
def test_a_defect_of_ours_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(command_line, "_outputs", [])
    with pytest.raises(type(error), match="ours"):
        start.guard(raising(error))


def test_results_are_checked_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_outputs", [])
    options.define_output("file_of_tests", "Only for these tests.")
    options.define_output("directory_of_tests", "Only for these tests.", directory=True)
    values = flags.FLAGS
    values.mark_as_parsed()
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name, place, code in (
        ("file_of_tests", tmp_path / "new" / "x.json", 0),
        ("file_of_tests", tmp_path / "file", 0),
        ("file_of_tests", tmp_path, 2),
        ("file_of_tests", tmp_path / "file" / "x.json", 2),
        ("file_of_tests", "a\0b", 2),
        ("directory_of_tests", tmp_path / "new" / "x", 0),
        ("directory_of_tests", tmp_path / "full", 2),
        ("directory_of_tests", tmp_path / "file", 2),
        ("directory_of_tests", tmp_path / "file" / "x", 2),
    ):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(values[name], "value", str(place))
        assert start.guard(lambda: 0) == code, place
        assert sorted(tmp_path.rglob("*")) == before
        monkeypatch.setattr(values[name], "value", "")
        assert capsys.readouterr().err.count("\n") == (code != 0)


def started(code, *arguments, **environment):
    """A process that runs a line of Python as a verb would."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from ssjax.cli import start\nstart.run({code})", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_closed_pipe_a_missing_backend_and_help_end_as_they_should():
    wordy = started("lambda: [print('x' * 1000) for _ in range(10000)] and 0")
    helped = started("lambda: 0", "--helpfull")
    lost = started("lambda: __import__('jax').devices() and 0", JAX_PLATFORMS="no_such_thing")
    wordy.stdout.readline()
    wordy.stdout.close()
    assert wordy.wait() == EXIT_CLOSED_PIPE and wordy.stderr.read() == ""
    wordy.stderr.close()
    shown, told = helped.communicate()
    assert helped.returncode == 0 and "--[no]only_check_args" in shown and told == ""
    _, told = lost.communicate()
    assert lost.returncode == 2 and told.count("\n") == 1
    assert told.startswith("error: no device to compute on (JAX_PLATFORMS=no_such_thing)")
