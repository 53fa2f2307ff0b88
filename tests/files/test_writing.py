"""Where results may be written: files, links to files, devices and pipes."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from ssjax.errors import UserError
from ssjax.files.writing import check_file, write_atomic


def test_a_device_is_written_to_and_stays():
    """Run as root, a file in the place of /dev/null would break every program of the machine."""
    check_file("/dev/null")
    write_atomic("/dev/null", "lost")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_standard_output_is_a_file_too():
    code = "from ssjax.files.writing import write_atomic; write_atomic('/dev/stdout', 'text')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"text"
    assert stat.S_ISLNK(os.lstat("/dev/stdout").st_mode)


def test_a_pipe_carries_the_content(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    check_file(pipe)
    write_atomic(pipe, "text")
    reader.join(10)
    assert read == [b"text"]
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_a_link_stays_and_its_file_is_replaced_whole(tmp_path):
    file, link = tmp_path / "file", tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(file)
    for content in ("made", "replaced"):
        check_file(link)
        write_atomic(link, content)
        assert link.is_symlink()
        assert file.read_text() == content
    assert os.listdir(link.parent) == ["link"]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "file"]


@pytest.mark.parametrize("name", ["", "missing/\0", "."])
def test_what_is_no_file_is_refused_with_its_name(tmp_path, name):
    with pytest.raises(UserError, match="cannot write"):
        check_file(f"{tmp_path}/{name}")
