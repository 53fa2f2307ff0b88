"""What a client asks of the engine, and what has become of it so far."""

import dataclasses
from collections.abc import Callable

from ssjax.decoding.completion import Completion
from ssjax.decoding.sampling import Sampling
from ssjax.serving.adapters import Adapter
from ssjax.serving.drafts import Draft
from ssjax.serving.grammar import Grammar

# How a completion ends that no token ended, besides those of `Completion.finish`.
CANCELLED = "cancelled"
TIMEOUT = "timeout"
TOO_COMPLEX = "too complex"  # the grammar


@dataclasses.dataclass(frozen=True)
class Asked:
    """One completion that is asked for. Which of it may vary freely compiles nothing."""

    prompt: tuple[int, ...]  # ids, at least one
    max_new_tokens: int
    # Temperature, top_k, top_p, min_p and, if the engine lets requests choose them, penalties are
    # of this request; the other fields must be those that the engine was made with.
    sampling: Sampling
    # With temperature above 0, sampled with the key (seed, place), as prompt `place` of
    # `Decoder.generate` with that seed is.
    seed: int
    place: int
    eos_ids: tuple[int, ...]  # each of them ends the completion; none is allowed
    # What the output follows; eos_ids then hold those of the model, since it ends with one of them.
    grammar: Grammar | None = None
    frequency_penalty: float = 0.0  # subtracted from a logit for each time it is in the output
    num_likeliest: int = 0  # tokens that are told in the place of each of the output
    deadline: float | None = None  # on the clock of time.monotonic(), seconds; None: never
    drafting: bool = True  # false: decoded plainly, a token a pass
    watched: bool = False  # its drafts are kept, see `Ticket.drafts`
    adapter: Adapter | None = None  # one that is loaded; None: the base

    @property
    def penalised(self) -> bool:
        """It has a penalty."""
        sampling = self.sampling
        own = (sampling.repetition_penalty - 1, sampling.presence_penalty, self.frequency_penalty)
        return any(own)


@dataclasses.dataclass
class Times:
    """When what happened to a request, seconds on the clock of time.monotonic(); 0: not yet."""

    arrived: float
    began: float = 0.0  # the prefill
    first_token: float = 0.0  # known to the host
    ended: float = 0.0


class Ticket:
    """A request in the engine. Written by the engine's thread, read by any.

    Attributes:
      asked: as submitted.
      completion: the latest; its finish is "unfinished" until the last one.
      times: of what has happened.
      drafted: nodes that each of its passes had room for.
      drafts: by the number of the pass, from 1, what was proposed to it; of a watched request, and
        only of the first pass after each look, which is every pass while it runs alone.
      known: tokens of the prompt that had been read for others.
    """

    def __init__(
        self,
        asked: Asked,
        empty: Completion,
        times: Times,
        notify: Callable[[], None],
        on_end: Callable[["Ticket", Completion], None],
    ):
        self.asked, self.completion, self.times = asked, empty, times
        self.drafted: list[int] = []
        self.drafts: dict[int, Draft] = {}
        self.known = 0
        self.cancelled = ""  # as what it is to end; empty: it goes on
        self._notify, self._on_end = notify, on_end

    @property
    def ended(self) -> bool:
        return self.completion.finish != "unfinished"

    def update(self, completion: Completion, now: float) -> None:
        """Takes a later completion and tells whoever waits; only the engine calls it."""
        if completion.tokens and not self.times.first_token:
            self.times.first_token = now
        if completion.finish != "unfinished":
            self.times.ended = now
            self._on_end(self, completion)
        self.completion = completion  # last: who sees the end sees its times, and it is counted
        self._notify()

    def end(self, finish: str, now: float) -> None:
        """Ends it with the tokens that it has."""
        self.update(dataclasses.replace(self.completion, finish=finish), now)
