"""What validations measure is called as in metrics.jsonl; which of it is better low, which high."""

VALIDATION_LOSS = "validation_loss"
TOKENS_PER_CALL = "validation_tokens_per_call"
PREFIX = "validation_"  # of every name
# Losses, and shares of answers that failed; of everything else more is better.
_LOW_IS_GOOD = ("loss", "malformed", "denied", "stopped", "reference_failed")
# Without prompts that are decoded there is no other.
_OF_LOSSES = ("loss", "accuracy")


def is_better_low(name: str) -> bool:
    """Whether the best of a measured value is the lowest."""
    return name.removeprefix(PREFIX).startswith(_LOW_IS_GOOD)


def is_decoded(name: str) -> bool:
    """Whether prompts have to be decoded to measure it."""
    return not name.removeprefix(PREFIX).startswith(_OF_LOSSES)
