"""Compiled programs between starts: where they are kept, and what damage of them costs.

Each start is a process, a fork of one that has imported JAX and has not started it; what it
computes is checked against NumPy.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ssjax.parallel import program_cache

ROOT = Path(__file__).parents[2]
# Three programs, two of one name. Prints results, how many programs were found, and the bound.
FORKING = """
import json, os, sys
import jax, jax.numpy as jnp
from ssjax.parallel import program_cache

def start(places):
    for place in places:
        program_cache.keep(place)
    found = []
    jax.monitoring.register_event_listener(
        lambda event, **_: found.append(event) if event.endswith("/cache_hits") else None
    )
    program = jax.jit(lambda x: (jnp.sin(x) @ x).sum())
    other = jax.jit(lambda x: x.T * 2)
    values = [program(jnp.ones((5, 5))), program(jnp.ones((7, 7))), other(jnp.ones(3)).sum()]
    size = jax.config.jax_compilation_cache_max_size
    print(*values, len(found), size, flush=True)

for line in sys.stdin:
    children = []
    for request in json.loads(line):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(os.open(request["error"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.environ["XDG_CACHE_HOME"] = request["caches"]
            for name, value in request["settings"].items():
                jax.config.update(name, value)
            start(request["places"])
            os._exit(0)
        children.append(child)
    print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)
"""
VALUES = [5**3 * np.sin(1), 7**3 * np.sin(1), 6.0]
KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0}
PROGRAMS = "jit__lambda"


@pytest.fixture(scope="module")
def forking():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore:os.fork", "-c", FORKING],
        env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.fixture
def start(forking, tmp_path):
    """Starts: places that are given in turn, settings of JAX, how many at once.

    Returns, of one start or of each: how many programs were found, what was said, and the bound.
    """

    def start(*places, caches=tmp_path / "caches", at_once=1, **settings):
        requests = [
            {
                "places": list(map(str, places)),
                "caches": str(caches),
                "settings": KEEP_ALL | settings,
                "out": str(tmp_path / f"out{i}"),
                "error": str(tmp_path / f"error{i}"),
            }
            for i in range(at_once)
        ]
        print(json.dumps(requests), file=forking.stdin, flush=True)
        codes = json.loads(forking.stdout.readline())
        found = []
        for code, request in zip(codes, requests, strict=True):
            error = Path(request["error"]).read_text()
            assert code == 0, error
            *values, hits, size = map(float, Path(request["out"]).read_text().split())
            np.testing.assert_allclose(values, VALUES, rtol=1e-6)
            found.append((int(hits), error, int(size)))
        return found[0] if at_once == 1 else found

    return start


@pytest.fixture
def place(tmp_path):
    return tmp_path / "caches" / "ssjax" / "compiled"


def entries(place, name=""):
    return sorted(place.glob(f"{name}*-cache"))


def said(place):
    return f"compiled programs are kept in {place}\n"


def test_the_second_start_finds_its_programs_and_says_nothing_else(start, place):
    assert start("") == (0, said(place), program_cache.MAX_BYTES)
    kept = entries(place)
    assert len(entries(place, PROGRAMS)) == 3
    assert start("", "")[:2] == (len(kept), said(place))
    assert entries(place) == kept


def test_damaged_entries_are_told_and_replaced(start, place):
    """Cut off, empty, and with other bytes."""
    start("")
    first, second, third = entries(place, PROGRAMS)
    os.truncate(first, 100)
    second.write_bytes(b"")
    third.write_bytes(third.read_bytes()[:-50] + bytes(50))
    found, error, _ = start("")
    assert found == len(entries(place)) - 3
    told = f"a compiled program in {place} is damaged and is compiled anew: {PROGRAMS}\n"
    assert sorted(error.splitlines(True)) == [told] * 3 + [said(place)]
    assert start("")[:2] == (len(entries(place)), said(place))


def test_an_entry_without_the_time_of_its_use_does_no_harm(start, place):
    start("")
    kept = entries(place)
    for file in place.glob("*-atime"):
        file.unlink()
    kept[0].unlink()
    assert start("")[:2] == (len(kept) - 1, said(place))
    assert entries(place) == kept


def test_starts_at_once_share_a_place(start, place):
    """None sees what another has half written, and in the end all programs are kept."""
    for _, error, _ in start("", at_once=4):
        assert error == said(place)
    assert start("")[0] == len(entries(place))


def test_what_compiles_fast_is_not_kept_and_nothing_is_said(start, place):
    assert start("", jax_persistent_cache_min_compile_time_secs=600)[:2] == (0, "")
    assert not entries(place)


def test_places(start, place, tmp_path):
    """The key, then JAX's variable, then the default; none and JAX's switch turn it off."""
    key, variable = tmp_path / "key", tmp_path / "variable"
    named = {"jax_compilation_cache_dir": str(variable)}
    unbounded = -1
    assert start(key, **named) == (0, said(key), unbounded)
    assert len(entries(key, PROGRAMS)) == 3 and not variable.exists()
    assert start("", **named) == (0, said(variable), unbounded)
    assert start("none", **named)[:2] == (0, "")
    assert start("", **named, jax_enable_compilation_cache=False)[:2] == (0, "")
    assert start(key, "")[:2] == (len(entries(key)), said(key))
    assert not place.exists()


def test_where_nothing_can_be_written_one_line_says_so(start, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for found, error, _ in (
        start("", caches=file),
        start(file),
        start("", jax_compilation_cache_dir=str(file)),
    ):
        assert found == 0 and error.count("\n") == 1
        assert error.startswith(f"compiled programs are not kept: cannot write {file}")


def test_the_default_place(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert program_cache.default_place() == Path("/var/caches/ssjax/compiled")
    for unset in ("", "caches"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert program_cache.default_place() == Path("/home/anna/.cache/ssjax/compiled")


def test_this_process_and_what_it_starts_keep_nothing():
    """Tests compile anew what they test, and write nothing into the home of who runs them."""
    assert not jax.config.jax_compilation_cache_dir
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
