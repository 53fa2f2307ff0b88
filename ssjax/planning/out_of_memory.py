"""What the TPU compiler says when it finds no room for a program.

It raises one kind of error for all that goes wrong, and how many bytes the program would need
stands in the text alone: no field, no other call gives it. So the text is read, here and nowhere
else. A text that is not known is no lack of room: the caller lets the error go on.
"""

import dataclasses
import re

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+[KMGT]?)"
_WHOLE_PROGRAM = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)")


@dataclasses.dataclass(frozen=True)
class NoRoom:
    """How much memory of a device a program would need."""

    needed: int  # bytes
    only_temporary: bool  # besides what it is given
    words: str  # the compiler's


def no_room(text: str) -> NoRoom | None:
    """Reads the text of a compiler's error; None: it is about something else."""
    for pattern, only_temporary in ((_WHOLE_PROGRAM, False), (_TEMPORARIES, True)):
        if found := pattern.search(text):
            return NoRoom(_bytes(found.group(1)), only_temporary, found.group(0))
    return None


def _bytes(size: str) -> int:
    """Of a size such as 32.91G."""
    unit = _UNITS.get(size[-1])
    return int(float(size[:-1]) * unit) if unit else int(float(size))
