"""The notebooks of the documentation run from the first cell to the last."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import ROOT

pytestmark = pytest.mark.stress

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# In a process of its own: the event loop and sockets of a kernel have warnings of their own.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": "."}}).execute()
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    finished = subprocess.run(
        [sys.executable, "-c", EXECUTE, notebook],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_there_are_two():
    assert len(NOTEBOOKS) == 2
