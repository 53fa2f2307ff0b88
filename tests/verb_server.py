"""Runs verbs of the command line in forked processes: the imports, 2 to 5 s each, are paid once.

The server is a process that has imported everything but the verbs, which define flags of the same
names, and has started no backend. A fork of it is as fresh as `python -m ssjax.VERB`, with its own
directory, flags, standard streams and exit code.
"""

import atexit
import dataclasses
import functools
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssjax.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a verb ended.

    Attributes:
      returncode: of the process; negative: a signal; None: the limit was passed.
      stdout, stderr: what it printed.
      seconds: of a processor.
    """

    returncode: int | None
    stdout: str
    stderr: str
    seconds: float


class Server:
    """The server, from outside."""

    def __init__(self, **environment: str):
        """environment: variables beside those of this process."""
        self._streams = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment,
        )
        assert self._process.stdout.readline() == "ready\n"

    def call(
        self,
        verb: str,
        arguments: Sequence,
        *,
        directory: Path = ROOT,
        text: str = "",
        limit: float = 500.0,
    ) -> Ended:
        """Runs a verb in a directory, with a text on standard input and a limit in seconds."""
        paths = {name: Path(self._streams.name) / name for name in ("stdin", "stdout", "stderr")}
        paths["stdin"].write_text(text)
        request = {
            "verb": verb,
            "arguments": list(map(str, arguments)),
            "directory": str(directory),
            "limit": limit,
            **{name: str(path) for name, path in paths.items()},
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code, seconds = json.loads(self._process.stdout.readline())
        out, err = (paths[name].read_text(errors="replace") for name in ("stdout", "stderr"))
        return Ended(code, out, err, seconds)

    def close(self) -> None:
        """Ends the server."""
        self._process.communicate()
        self._streams.cleanup()


@functools.cache
def server(**environment: str) -> Server:
    """The server of this process with these variables; started on first use."""
    started = Server(**environment)
    atexit.register(started.close)
    return started


def _import_all() -> None:
    import ssjax

    for module in pkgutil.walk_packages(ssjax.__path__, "ssjax."):
        if module.name.removeprefix("ssjax.") not in VERBS:
            importlib.import_module(module.name)


def _run(request: dict[str, Any]) -> None:
    """The rest of the life of a forked child."""
    os.setpgid(0, 0)
    os.chdir(request["directory"])
    writes = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, how in enumerate((os.O_RDONLY, writes, writes)):
        name = ("stdin", "stdout", "stderr")[number]
        os.dup2(os.open(request[name], how), number)
    sys.argv = [f"ssjax/{request['verb']}", *request["arguments"]]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115, what the server has read ahead is not ours
    os.environ.setdefault("GLIBC_TUNABLES", "")  # a training would start itself anew
    code = 1
    try:
        runpy.run_module(f"ssjax.{request['verb']}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _import_all()
    warnings.filterwarnings("ignore", message="os.fork")  # no backend has been started
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        end, pause, done = time.monotonic() + request["limit"], 1e-3, 0
        while not done and time.monotonic() < end:
            done, status, used = os.wait4(child, os.WNOHANG)
            time.sleep(0 if done else pause)
            pause = min(2 * pause, 0.02)
        code = os.waitstatus_to_exitcode(status) if done else None
        if not done:
            os.killpg(child, signal.SIGKILL)
            _, _, used = os.wait4(child, 0)
        print(json.dumps([code, used.ru_utime + used.ru_stime]), flush=True)


if __name__ == "__main__":
    _serve()
