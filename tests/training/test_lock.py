"""One run in a directory at a time, and processes that end whatever their threads do."""

import os
import subprocess
import sys

import pytest

from ssjax.errors import UserError
from ssjax.training import lock


def test_the_second_learns_who_holds_it_and_the_next_may_have_it(tmp_path):
    workdir = tmp_path / "runs" / "x"
    with lock.hold(workdir):
        before = (workdir / lock.FILE).read_bytes()
        with (
            pytest.raises(UserError, match=rf"{workdir} is in use by process {os.getpid()}, there"),
            lock.hold(workdir),
        ):
            pass
        assert (workdir / lock.FILE).read_bytes() == before
    assert not (tmp_path / "runs").exists()  # nothing was written there
    with lock.hold(workdir):
        (workdir / "config.json").touch()
    assert {path.name for path in workdir.iterdir()} == {lock.FILE, "config.json"}


_HOLDS = """
import sys, time
from pathlib import Path
from ssjax.training import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_blocks_nobody(tmp_path, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, tmp_path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        match = f"in use by process {holder.pid},"
        with pytest.raises(UserError, match=match), lock.hold(tmp_path):
            pass
        holder.kill()
    with lock.hold(tmp_path):
        assert capsys.readouterr().err == ""  # it was this host, which knows better


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"pid": 3, "host": "h2", "since": "noon"}', "process 3, there since noon on h2"),
        (b"\xff{", ""),
        (b"[]", ""),
    ],
)
def test_what_others_left_in_the_file(tmp_path, capsys, content, said):
    (tmp_path / lock.FILE).write_bytes(content)
    with lock.hold(tmp_path):
        assert said in capsys.readouterr().err
    assert (tmp_path / lock.FILE).read_bytes() == b""


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "afile").touch()
    with (
        pytest.raises(UserError, match="cannot write .*afile/x: Not a dir"),
        lock.hold(tmp_path / "afile" / "x"),
    ):
        pass


_STUCK = """
import threading
from ssjax.training import interruption
threading.Thread(target=threading.Event().wait).start()
interruption.end_within(0.1, 3)
"""


def test_a_stuck_thread_does_not_keep_a_process_from_ending():
    assert subprocess.run([sys.executable, "-c", _STUCK], timeout=60).returncode == 3
