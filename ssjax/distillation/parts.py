"""Answers on their way to disk: a line a batch, whole or absent whenever the process is killed."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ssjax.distillation.prompts import Jobs
from ssjax.errors import DamagedError
from ssjax.files.writing import writing


@dataclasses.dataclass(frozen=True)
class OwnAnswer:
    """What a model said to one prompt."""

    place: int  # of the record in its split
    text: str  # continues the prompt
    num_tokens: int  # end of sequence included
    cut: bool  # at the most tokens that a target has
    left_out: str = ""  # why it cannot be trained on; empty: it can


class Part:
    """The answers of a split so far, in the order of its jobs.

    Args:
      path: of the file; made if it is not there. A line that was torn by a kill is cut off.
      jobs: that are answered.

    Raises:
      DamagedError: the file holds something else.
      UserError: it cannot be written.
    """

    def __init__(self, path: Path, jobs: Jobs):
        self._path = path
        with writing(path):
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                os.truncate(path, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            self.answers = [OwnAnswer(**answer) for line in lines for answer in line]
        except (ValueError, TypeError):
            raise DamagedError(
                f"{path} is not as it was written; begin with another --target"
            ) from None
        places = [job.place for job in jobs.ordered[: len(self.answers)]]
        if [answer.place for answer in self.answers] != places:
            raise DamagedError(
                f"{path} holds answers to other prompts; begin with another --target"
            )

    def append(self, answers: Sequence[OwnAnswer]) -> None:
        """Adds a batch; when this returns, it is on disk. Raises: UserError: it cannot be."""
        line = json.dumps([dataclasses.asdict(answer) for answer in answers]) + "\n"
        with writing(self._path), self._path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.answers.extend(answers)
