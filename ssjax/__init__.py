"""Speculative Streaming in JAX: train decoder language models that draft for themselves.

>>> import ssjax
>>> run = ssjax.load_run("runs/dialogsum")
>>> [answer] = run.generate(["#Person1#: Hi! ..."])
>>> answer.text, answer.tokens_per_call
"""

__all__ = ["UserError", "load_run"]


def __getattr__(name):
    # Loaded on first use: `ssjax.models` and `ssjax.decoding` must import without Orbax and
    # SentencePiece.
    if name == "load_run":
        from ssjax.run import load_run

        return load_run
    if name == "UserError":
        from ssjax.errors import UserError

        return UserError
    raise AttributeError(f"module 'ssjax' has no attribute {name!r}")
