"""Whether prompts and outputs fit: the positions of the model, the memory of the device."""

import contextlib
from collections.abc import Iterator

import jax

from ssjax.config import ModelConfig
from ssjax.errors import UserError
from ssjax.messages import say_once


def check_positions(config: ModelConfig, num_tokens: int) -> None:
    """Whether a prompt with its output fits; a model may be asked for more than it has seen.

    Args:
      config: of the model.
      num_tokens: of the longest prompt with its output.

    Raises:
      UserError: the model has no positions for so many.
    """
    if 0 < config.longest_sequence < num_tokens:
        raise UserError(
            f"prompt and output may have {num_tokens} tokens, but the model has positions for "
            f"{config.longest_sequence}; shorten the prompt or lower max_new_tokens"
        )
    if num_tokens <= config.max_positions or not config.max_positions:
        return
    # Without the number of tokens, which would make it another line for every batch.
    say_once(
        "a prompt with its new tokens is longer than the "
        f"{config.max_positions} positions that the model is made for "
        "(max_position_embeddings); what it writes after them may be worthless"
    )


@contextlib.contextmanager
def enough_memory(rows: int, capacity: int) -> Iterator[None]:
    """One line where the device, or the host, has no room for rows of so many tokens.

    Raises:
      UserError: in place of the error of the allocation.
    """
    try:
        yield
    except MemoryError:
        raise UserError(too_large(rows, capacity)) from None
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        raise UserError(too_large(rows, capacity)) from None


def too_large(rows: int, capacity: int) -> str:
    """What to say where rows of so many tokens do not fit."""
    return (
        f"there is not enough memory for {rows} rows of {capacity} tokens (prompt and output); "
        "lower batch_size or max_new_tokens, shorten the prompts, or divide the model over more "
        "devices"
    )
