"""The sizes of an engine, and whether a request is within them."""

import dataclasses

from ssjax.decoding.decoder import Decoder
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.serving.extras import Extras
from ssjax.serving.ticket import Asked


@dataclasses.dataclass(frozen=True)
class EngineLimits:
    """The sizes of an engine."""

    num_slots: int  # requests that run at once
    max_waiting: int  # requests that wait for a slot; more are refused
    max_prompt_tokens: int  # of one request
    max_new_tokens: int  # of one request
    max_eos_ids: int  # of one request
    passes_per_round: int  # between two looks at what is new
    # Prompt tokens that are read in a round, padding included, so that who runs already need not
    # wait for all who come; at least one prompt is, or one piece.
    prefill_tokens: int
    prefill_piece: int = 0  # tokens of a prompt that are read at a time; 0: all of them
    prefix_bytes: int = 0  # of beginnings of prompts that are kept; 0: none are


def check_asked(
    asked: Asked, limits: EngineLimits, sampling: Sampling, extras: Extras, decoder: Decoder
) -> None:
    """Checks a request before it waits.

    Args:
      asked: what for.
      limits: sizes.
      sampling: what all requests share of it.
      extras: what else requests may ask for.
      decoder: the model.

    Raises:
      UserError: it is beyond the limits or cannot work.
    """
    _check_tokens(asked, limits, decoder.model.config.vocab_size)
    _check_sampling(asked, sampling, extras)
    if asked.grammar is None:
        return
    if extras.grammars is None:
        raise UserError("structured output is not served here; leave it out")
    if not set(decoder.eos_ids) <= set(asked.eos_ids):
        raise UserError("an output that follows a grammar ends with it; leave ignore_eos out")
    extras.grammars.follow(asked.grammar)


def _check_tokens(asked, limits, vocab_size) -> None:
    if not asked.prompt:
        raise UserError("the prompt is empty; it needs at least one token")
    if len(asked.prompt) > limits.max_prompt_tokens:
        raise UserError(
            f"the prompt has {len(asked.prompt)} tokens, but at most {limits.max_prompt_tokens} "
            "are read here; shorten it"
        )
    if not 0 <= min(asked.prompt) <= max(asked.prompt) < vocab_size:
        raise UserError(f"the prompt has an id outside of 0 to {vocab_size - 1}")
    if not 0 <= asked.max_new_tokens <= limits.max_new_tokens:
        raise UserError(
            f"{asked.max_new_tokens} new tokens are asked for, but 0 to {limits.max_new_tokens} "
            "are given here; ask for fewer"
        )
    if len(asked.eos_ids) > limits.max_eos_ids:
        raise UserError(
            f"{len(asked.eos_ids)} ids may end the output, but at most {limits.max_eos_ids} are "
            "looked for here; give fewer"
        )
    for name in ("seed", "place"):
        if not -(2**31) <= getattr(asked, name) < 2**31:
            raise UserError(f"the {name} must lie between -2147483648 and 2147483647")


def _check_sampling(asked, sampling, extras) -> None:
    changed = ["temperature", "top_k", "top_p", "min_p"]
    if extras.penalties:
        changed += ["repetition_penalty", "presence_penalty"]
    as_ours = {name: getattr(sampling, name) for name in changed}
    if dataclasses.replace(asked.sampling, **as_ours) != sampling:
        raise UserError(f"of the sampling a request may choose {', '.join(changed)} alone")
    if asked.frequency_penalty and not extras.penalties:
        raise UserError("a frequency penalty is not served here; leave it out")
    if not 0 <= asked.num_likeliest <= extras.num_likeliest:
        raise UserError(
            f"the log-probabilities of {asked.num_likeliest} likeliest tokens are asked for, but "
            f"those of at most {extras.num_likeliest} are told here; ask for fewer"
        )
