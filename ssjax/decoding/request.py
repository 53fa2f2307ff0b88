"""What a decoder is asked for: prompts, limits, the distribution of the tokens, and seeds."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssjax.config import DecodeConfig
from ssjax.decoding.acceptance import RULES
from ssjax.decoding.sampling import Sampling, make_sampling
from ssjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """Completions that are asked for.

    A `Way` says how they are made. It changes none of them, unless accept is "typical".

    Raises:
      ValueError: an empty prompt, a negative limit, an unknown rule, or not as many limits, seeds
        or numbers as prompts.
      UserError: a seed beyond int32, or typical acceptance of greedy tokens.
    """

    prompts: Sequence[Sequence[int]]  # ids of each, at least one id each
    max_new_tokens: int | Sequence[int]  # for all prompts, or one number each; 0 is allowed
    sampling: Sampling  # the target distribution
    # With temperature above 0 prompt i is sampled with the key (seed, numbers[i]). With one seed
    # for each prompt it has the key (seed[i], 0), whatever the other prompts are.
    seed: int | Sequence[int]
    batch_size: int  # prompts decoded together; does not change the completions
    log_probs: bool = False  # also the log-probabilities of the tokens
    accept: str = "exact"  # or "typical", under which drafts do change the completions
    numbers: Sequence[int] | None = None  # one for each prompt; None: 0, 1, ...

    def __post_init__(self):
        if self.accept not in RULES:
            raise ValueError(f"accept {self.accept!r} must be one of {', '.join(RULES)}")
        if self.accept == "typical" and self.sampling.temperature == 0:
            raise UserError(
                "typical acceptance needs a temperature above 0: of greedy decoding only one token "
                "is right"
            )
        if any(len(prompt) == 0 for prompt in self.prompts):
            raise ValueError("a prompt needs at least one token")
        if self.limits.min(initial=0) < 0:
            raise ValueError("max_new_tokens must be 0 or more")
        self.key_parts()

    @property
    def limits(self) -> np.ndarray:
        """New tokens of each prompt at most, [N] int32."""
        return np.broadcast_to(np.asarray(self.max_new_tokens, np.int32), len(self.prompts))

    def key_parts(self) -> tuple[np.ndarray, np.ndarray]:
        """The two numbers that make the key of each prompt, [N] int32 each."""
        count = len(self.prompts)
        places = np.array(range(count) if self.numbers is None else self.numbers, np.int32)
        if isinstance(self.seed, int | np.integer):
            seeds = [self.seed] * count
        else:
            seeds, places = list(self.seed), np.zeros_like(places)
        if len(seeds) != count:
            raise ValueError(f"{len(seeds)} seeds for {count} prompts")
        if len(places) != count:
            raise ValueError(f"{len(places)} numbers for {count} prompts")
        try:
            return np.array(seeds, np.int32), places
        except OverflowError:
            raise UserError("a seed must lie between -2147483648 and 2147483647") from None

    def batches(self) -> Iterator["PromptBatch"]:
        """Prompts that are decoded together, in their order.

        A short last batch repeats its last prompt with a limit of 0: the same compiled program, and
        rows that are done from the start.
        """
        limits, (seeds, places) = self.limits, self.key_parts()
        for start in range(0, len(self.prompts), self.batch_size):
            stop = min(start + self.batch_size, len(self.prompts))
            index = np.arange(start, start + self.batch_size)
            rows = np.minimum(index, stop - 1)
            yield PromptBatch(
                prompts=[self.prompts[row] for row in rows],
                limits=np.where(index < stop, limits[rows], 0).astype(np.int32),
                seeds=seeds[rows],
                places=places[rows],
                num_prompts=stop - start,
            )


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """The rows of one batch, B of them."""

    prompts: list[Sequence[int]]  # B
    limits: np.ndarray  # [B] int32, new tokens at most
    seeds: np.ndarray  # [B] int32, see `Request.key_parts`
    places: np.ndarray  # [B] int32
    num_prompts: int  # rows that are prompts; those after them fill the batch

    @property
    def lengths(self) -> np.ndarray:
        """[B] int32, of the prompts."""
        return np.array([len(prompt) for prompt in self.prompts], np.int32)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its output."""
        return int((self.lengths + self.limits.astype(np.int64)).max())

    def padded(self, width: int, pad_id: int) -> np.ndarray:
        """The prompts, padded on the right, [B, width] int32."""
        tokens = np.full((len(self.prompts), width), pad_id, np.int32)
        for row, prompt in enumerate(self.prompts):
            tokens[row, : len(prompt)] = prompt
        return tokens


def make_request(decode: DecodeConfig, prompts: Sequence[Sequence[int]], **changes: Any) -> Request:
    """What a config asks for these prompts (ids). changes: fields of `Request`, in its place."""
    asked = {
        "max_new_tokens": decode.max_new_tokens,
        "sampling": make_sampling(decode),
        "seed": decode.seed,
        "batch_size": decode.batch_size,
        "accept": decode.accept,
    }
    return Request(prompts, **(asked | changes))
