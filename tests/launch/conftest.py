"""A PATH whose first directory holds stand-ins for what the launch scripts call."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Sandbox:
    """Runs scripts with stand-in programs first on PATH and a home directory of their own."""

    def __init__(self, path: Path):
        self.path = path
        self.bin = path / "bin"
        self.bin.mkdir()
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(path),
            "STAND_IN": str(path),
            "LC_ALL": "C.UTF-8",
        }
        self.program("sleep", f'echo "$1" >> {path}/sleeps')

    def program(self, name: str, script: str) -> None:
        """Adds a stand-in program, a shell script."""
        self.file(f"bin/{name}", f"#!/bin/bash\n{script}\n")

    def file(self, name: str, content: str) -> Path:
        """Writes an executable file below the sandbox."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o755)
        return file

    def mounts(self, *codes: int, installed: bool = True) -> None:
        """Adds stand-ins for mounting; gcsfuse fails with these codes in turn, then mounts."""
        (self.path / "gcsfuse_codes").write_text("".join(f"{code}\n" for code in codes))
        log = f'echo "$(basename "$0") $*" >> {self.path}/mounts'
        gcsfuse = self.file(
            "gcsfuse",
            f"""#!/bin/bash
{log}
[[ ! -e /proc/self/fd/9 ]] || echo yes >> {self.path}/holds_lock
read -r code < {self.path}/gcsfuse_codes && sed -i 1d {self.path}/gcsfuse_codes && exit "$code"
touch {self.path}/mounted
""",
        )
        if installed:
            gcsfuse.rename(self.bin / "gcsfuse")
        self.program("mountpoint", f'[[ "$*" == "-q /mnt/ssjax" && -e {self.path}/mounted ]]')
        self.program(
            "sudo",
            f"""{log}; cat >> {self.path}/as_root
[[ $2 != install ]] || mv {gcsfuse} {self.bin}""",
        )

    def lines(self, name: str) -> list[str]:
        """The lines of a file that stand-ins wrote; none if it is not there."""
        file = self.path / name
        return file.read_text().splitlines() if file.exists() else []

    def where(self, program: str) -> str:
        """What the shell finds under a name."""
        return self.run("bash", "-c", f"command -v {program}").stdout.strip()

    def run(self, *command, cwd=ROOT, **env) -> subprocess.CompletedProcess:
        """Runs a command to its end."""
        return subprocess.run(
            [os.fspath(word) for word in command],
            cwd=cwd,
            env=self.env | env,
            text=True,
            capture_output=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture
def sandbox(tmp_path):
    """A fresh sandbox."""
    return Sandbox(tmp_path)
