"""What requests may ask of an engine beyond the plain, and what that means for its passes."""

import dataclasses

from ssjax.serving.grammar import Grammars
from ssjax.serving.sizes import Size


@dataclasses.dataclass(frozen=True)
class Special:
    """What requests may need that is no part of the passes while nobody does."""

    num_words: int = 0  # W of the masks of allowed tokens, see constraints.py; 0: there are none
    penalties: bool = False  # each request has its own; those of the engine are not looked at
    num_likeliest: int = 0  # tokens that are told in the place of each, at most

    @property
    def any(self) -> bool:
        return bool(self.num_words or self.penalties or self.num_likeliest)


@dataclasses.dataclass(frozen=True)
class Extras:
    """What an engine has more programs for than one; each costs its start some compilations."""

    # To choose from by the number of busy slots, see sizes.py; none: one, of all slots.
    sizes: tuple[Size, ...] = ()
    grammars: Grammars | None = None  # that outputs may follow; None: none
    penalties: bool = False  # each request may choose its own
    num_likeliest: int = 0  # tokens that may be asked for in the place of each, at most

    @property
    def special(self) -> Special:
        """What requests may need of a pass."""
        num_words = self.grammars.num_words if self.grammars else 0
        return Special(num_words, self.penalties, self.num_likeliest)


NO_EXTRAS = Extras()
