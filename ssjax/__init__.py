"""Speculative Streaming in JAX: train decoder language models that draft for themselves.

>>> import ssjax
>>> run = ssjax.load_run("runs/dialogsum")
>>> [answer] = run.generate(["#Person1#: Hi! ..."])
>>> answer.text, answer.tokens_per_call
"""

import importlib

# Loaded on first use: `ssjax.models` and `ssjax.decoding` must import without Orbax and
# SentencePiece.
_HOME = {
    "UserError": "ssjax.errors",
    "load_run": "ssjax.run",
    "register_task": "ssjax.data.tasks",
}

__all__ = ["UserError", "load_run", "register_task"]  # noqa: F822


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ssjax' has no attribute {name!r}")
