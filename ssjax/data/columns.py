"""The prompt and the answer of a user's own task, as columns of JSON lines.

{"product": "kettle", "question": "Is it loud?", "answer": "No."}

prompt  "{product}: {question}\\nAnswer:"    answer  "answer"
"""

import dataclasses
import string
from collections.abc import Callable, Mapping
from typing import Any

from ssjax.errors import UserError

Line = Mapping[str, Any]  # the object of a line, as JSON has it

BARE_INPUT = "input"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns make the prompt, and which one is the answer.

    Raises:
      UserError: a prompt that names no column or is no template, or one that gives the answer away.
    """

    prompt: str  # "{name}" stands for the text of a column, "{{" and "}}" for braces
    answer: str  # column of a text, or of a list of texts that are all right
    read: Callable[[Line], Line | None] | None  # from a line to its columns; None leaves it out

    def __post_init__(self):
        if not self.names:
            raise UserError(f"prompt {self.prompt!r} names no column; write one as {{name}}")
        if self.answer in self.names:
            raise UserError(f"prompt {self.prompt!r} gives the answer away: {{{self.answer}}}")

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the prompt, each once."""
        return tuple(dict.fromkeys(self._parts()[1]))

    def fill(self, record: Mapping[str, Any]) -> str:
        """The prompt of a record; a bare input stands for all from the first column to the last."""
        texts, names = self._parts()
        if not all(name in record for name in names):
            return texts[0] + record[BARE_INPUT] + texts[-1]
        values = [record[name] + text for name, text in zip(names, texts[1:], strict=True)]
        return texts[0] + "".join(values)

    def references(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The answers of a record, the training target first."""
        return record[self.answer]

    def same_as(self, other: "Columns") -> bool:
        """Whether both mean the same; a function that is defined anew by the same lines does."""
        own, others = (getattr(each.read, "__code__", each.read) for each in (self, other))
        return (self.prompt, self.answer, own) == (other.prompt, other.answer, others)

    def _parts(self) -> tuple[list[str], list[str]]:
        """Texts before, between and after the columns, and the columns."""
        texts, names = [""], []
        try:
            for text, name, form, conversion in string.Formatter().parse(self.prompt):
                texts[-1] += text
                if name is None:
                    continue
                if not name or form or conversion:
                    raise ValueError("a column is written {name}, without more in the braces")
                names.append(name)
                texts.append("")
        except ValueError as error:
            raise UserError(f"prompt {self.prompt!r}: {error}") from None
        return texts, names
