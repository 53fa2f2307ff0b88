"""Compiled programs kept on disk between starts, in JAX's persistent compilation cache.

A start that finds its programs does not wait for the compiler. Verbs keep them by default. From
Python nothing is kept unless `compilation_cache` of a training asks for it: the cache belongs to
the process, and its owner may have one.

Where: the key `compilation_cache`, else JAX_COMPILATION_CACHE_DIR, else `default_place`. A place
that the user named is JAX's alone. The default one is bounded: what was used longest ago leaves
first, under a lock, so that several processes may share it. Left out are programs that compile in
less than `MIN_SECONDS`, or than JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS where that is set. JAX
keys entries by program, versions, XLA flags and the features of the processor.
"""

import contextlib
import functools
import re
import warnings
from pathlib import Path

import filelock
import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from ssjax.errors import UserError
from ssjax.files import caches
from ssjax.files.writing import make_directory
from ssjax.messages import say, say_once

NOWHERE = "none"
MAX_BYTES = 2 * 1024**3  # a program of 30 layers takes 0.2 to 1 MB
# The small programs of a start (digests of weights, the state of a decoder) take 0.1 to 0.6 s each,
# 2 s in all, and JAX's own default of a second would compile them at each.
MIN_SECONDS = 0.1
_JAX_MIN_SECONDS = 1.0

_USED = ("/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses")
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '(.+?)': (\w+)")


def keep(place: str = "") -> None:
    """Keeps the programs that this process compiles from now on, and looks for them there.

    Says where, once, when the first program is written or found. Where nothing can be kept, one
    line says so, and programs are compiled as if there were no cache.

    Args:
      place: a directory, which may be remote (`gs://`); "none": nowhere; empty: as JAX is set,
        and where it is not, `default_place`.
    """
    if place == NOWHERE:
        _move(None)
        return
    _say_place()
    if not jax.config.jax_enable_compilation_cache:
        return
    named = place or jax.config.jax_compilation_cache_dir
    if not named and jax.distributed.is_initialized() and jax.process_count() > 1:
        return  # JAX writes from the first process alone, and the others may have other disks
    try:
        chosen = named or str(_open(default_place()))
        if "://" not in chosen:
            make_directory(chosen)
    except UserError as error:
        say(f"compiled programs are not kept: {error}")
        chosen = None
    _move(chosen)


def default_place() -> Path:
    """`ssjax/compiled` in the user's directory for caches.

    Raises:
      UserError: the user has no home.
    """
    return caches.directory("compiled", "set JAX_COMPILATION_CACHE_DIR")


def _move(place: str | None) -> None:
    """Makes JAX use another place, also after it has used one."""
    if jax.config.jax_persistent_cache_min_compile_time_secs == _JAX_MIN_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    if place != jax.config.jax_compilation_cache_dir:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", place)


def _open(place: Path) -> Path:
    """The default place, ready for JAX's cache of a bounded size."""
    make_directory(place)
    if jax.config.jax_compilation_cache_max_size < 0:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    try:
        with filelock.FileLock(place / ".lockfile", timeout=10):
            _complete(place)
    except filelock.Timeout:
        pass  # somebody writes; JAX waits as long, and then goes on without the cache
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{place} cannot be locked: {error}") from None
    _drop_damaged(place)
    return place


def _complete(place: Path) -> None:
    """Gives every entry the time of its last use, without which JAX cannot write another.

    It is missing where a process was killed between the two files, or something tidied up.
    """
    for entry in place.glob("*-cache"):
        used = _last_use(entry)
        with contextlib.suppress(FileNotFoundError):
            if not used.exists():
                used.write_bytes(entry.stat().st_mtime_ns.to_bytes(8, "little"))


def _last_use(entry: Path) -> Path:
    return entry.with_name(entry.name.removesuffix("-cache") + "-atime")


@functools.cache
def _drop_damaged(place: Path) -> None:
    """Removes an entry that JAX cannot read, which it would keep, and compile anew at each start.

    JAX warns after it has read one, and names its program. Of that, the entry that it has just read
    is the one that was used last.
    """
    show = warnings.showwarning

    def show_or_drop(message, *rest, **more):
        found = _UNREADABLE.match(str(message))
        if found is None or found[2] == filelock.Timeout.__name__:
            show(message, *rest, **more)
            return
        say(f"a compiled program in {place} is damaged and is compiled anew: {found[1]}")
        entries = [e for e in place.glob(f"{found[1]}-*-cache") if _last_use(e).exists()]
        if entries:
            damaged = max(entries, key=lambda entry: _last_use(entry).stat().st_mtime_ns)
            for file in (damaged, _last_use(damaged)):
                file.unlink(missing_ok=True)

    warnings.filterwarnings("always", _UNREADABLE.pattern)  # else the same words are told once
    warnings.showwarning = show_or_drop


@functools.cache
def _say_place() -> None:
    """Says the place when it is used; a start that compiles nothing worth keeping says nothing."""

    def said(event: str, **_) -> None:
        if event in _USED:
            say_once(f"compiled programs are kept in {jax.config.jax_compilation_cache_dir}")

    monitoring.register_event_listener(said)
