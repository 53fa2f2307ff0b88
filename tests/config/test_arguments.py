"""What people pass to `generate` is taken as they mean it, or refused by name."""

import numpy as np
import pytest

from ssjax.config import arguments
from ssjax.data import prompts as prompts_lib
from ssjax.errors import UserError


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("abc", ["abc"]),
        (["abc"], ["abc"]),
        (("a", "b"), ["a", "b"]),
        ((text for text in "ab"), ["a", "b"]),
        ([], []),
        ([1, 2, 3], [(1, 2, 3)]),
        ((1,), [(1,)]),
        (np.array([1, 2], np.int64), [(1, 2)]),
        ([np.int32(1), 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        (np.array([[1, 2], [3, 4]]), [(1, 2), (3, 4)]),
        (["a", [1, 2]], ["a", (1, 2)]),
        ([[]], [()]),
    ],
)
def test_prompts_in_every_form(given, prompts):
    assert prompts_lib.read_prompts(given, vocab_size=10) == prompts


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "inputs is of type NoneType"),
        (3, "inputs is of type int"),
        (b"abc", "inputs is of type bytes"),
        ({"prompt": "a"}, "inputs is of type dict"),
        ([1.5, 2.0], r"inputs\[0\] is of type float"),
        (["a", None], r"inputs\[1\] is of type NoneType"),
        ([True, False], r"inputs\[0\] is of type bool"),
        ([["a", "b"]], r"inputs\[0\] is of type list"),
        (np.array([0.5]), r"inputs\[0\] is of type float64"),
        ([1, 10], "inputs holds the id 10; the model has ids 0 to 9"),
        ([[1], [-1]], r"inputs\[1\] holds the id -1"),
        ("half \ud800", "inputs holds what is no character"),
        (["a", "\udcff"], r"inputs\[1\] holds what is no character"),
    ],
)
def test_what_is_no_prompt_is_named(given, named):
    with pytest.raises(UserError, match=named):
        prompts_lib.read_prompts(given, vocab_size=10)


def test_changes_are_taken_as_they_are_meant():
    changes = {
        "stop": "END",
        "banned_tokens": 3,
        "temperature": np.float32(0.5),
        "max_new_tokens": np.int64(7),
        "top_p": 1,
        "prompt_buckets": np.array([8, 16]),
    }
    assert arguments.read_changes(changes) == {
        "stop": ("END",),
        "banned_tokens": (3,),
        "temperature": 0.5,
        "max_new_tokens": 7,
        "top_p": 1.0,
        "prompt_buckets": (8, 16),
    }
    assert arguments.read_changes({"stop": ["a", "b"]}) == {"stop": ("a", "b")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_tokens": 5}, "unknown key max_tokens; did you mean max_new_tokens"),
        ({"temperature": "hot"}, "temperature must be a number of at least 0, got 'hot'"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"max_new_tokens": 2**31}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number"),
        ({"stop": 3}, "stop must be a tuple, each of it text"),
        ({"stop": [""], "drafter": "magic"}, "drafter must be one of auto, plain"),
        ({"seed": True}, "seed must be a whole number"),
    ],
)
def test_changes_that_cannot_work_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        arguments.read_changes(changes)


def test_seeds_counts_and_paths():
    assert arguments.read_seeds(np.array([1, 2]), 2) == [1, 2]
    assert arguments.read_seeds(3, 1) == [3] and arguments.read_seeds(None, 5) is None
    for seeds, count in (([1], 2), (3, 2), (["a"], 1), ([True], 1), ([2**31], 1), ("12", 2)):
        with pytest.raises(UserError, match=f"seeds must be {count} whole number"):
            arguments.read_seeds(seeds, count)
    assert arguments.read_count(np.int64(3), "passes", least=1) == 3
    for value in (0, True, 1.0, "1", None, 2**31):
        with pytest.raises(UserError, match="passes must be a whole number of at least 1"):
            arguments.read_count(value, "passes", least=1)
    for value in (None, 3, "", "a\0b", b"run"):
        with pytest.raises(UserError, match="workdir must be a path"):
            arguments.read_path(value, "workdir")
