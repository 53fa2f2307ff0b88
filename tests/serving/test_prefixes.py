"""Beginnings of prompts against a list of all prompts, and what goes when there is no room."""

import random

import pytest

from ssjax.serving.prefixes import Prefixes


def test_what_is_found_is_the_longest_beginning_that_came_before():
    """With room for all; what is kept of a block is what came before and in it."""
    rng, prefixes, prompts = random.Random(0), Prefixes(10**6, 1, 3), []
    queries = hits = 0
    for _ in range(400):
        owner = rng.choice(("a", "b", None))
        prompt = tuple(rng.randrange(2) for _ in range(rng.randint(1, 14)))
        shared = max(
            (
                n
                for n in range(0, len(prompt), 3)
                if any(o == owner and len(p) >= n and p[:n] == prompt[:n] for o, p in prompts)
            ),
            default=0,
        )
        assert prefixes.num_known(owner, prompt) == shared
        found = prefixes.find(owner, prompt)
        assert found == [(owner, prompt[: n + 3]) for n in range(0, shared, 3)]
        queries, hits = queries + len(prompt), hits + shared
        assert (prefixes.queries, prefixes.hits) == (queries, hits)
        prefixes.keep(owner, prompt, lambda n, o=owner, p=prompt: (o, p[: n + 3]))
        prompts.append((owner, prompt))
    assert 0 < hits < queries


def test_the_last_token_is_always_read_anew():
    prefixes = Prefixes(100, 1, 2)
    prefixes.keep(None, (1, 2, 3, 4), lambda start: start)
    assert prefixes.find(None, (1, 2, 3, 4)) == [0]
    assert prefixes.find(None, (1, 2, 3, 4, 5)) == [0, 2]


def test_what_was_not_used_for_longest_goes_from_the_end():
    prefixes = Prefixes(5, 1, 1)
    prefixes.keep(None, (1, 2, 3), lambda start: start)
    prefixes.keep(None, (7, 8), lambda start: start)
    prefixes.find(None, (1, 2, 0))
    prefixes.keep(None, (9,), lambda start: start)
    assert len(prefixes) == 5
    assert prefixes.num_known(None, (1, 2, 3, 0)) == 2  # 3 had not been used again
    assert prefixes.num_known(None, (7, 8, 0)) == 2
    prefixes.keep(None, tuple(range(20, 30)), lambda start: start)
    assert len(prefixes) == 5 and prefixes.num_known(None, tuple(range(20, 30))) == 5


def test_an_owner_is_forgotten():
    prefixes = Prefixes(10, 1, 1)
    for owner in ("a", "b"):
        prefixes.keep(owner, (1, 2), lambda start: start)
    prefixes.forget("a")
    assert prefixes.num_known("a", (1, 2, 3)) == 0
    assert prefixes.num_known("b", (1, 2, 3)) == 2


@pytest.mark.parametrize("max_bytes", [0, 9])
def test_without_room_nothing_is_kept(max_bytes):
    prefixes = Prefixes(max_bytes, 10, 1)
    prefixes.keep(None, (1, 2), lambda start: pytest.fail("computed"))
    assert len(prefixes) == 0
