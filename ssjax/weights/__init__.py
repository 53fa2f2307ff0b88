"""Base models, families, adapters, exports and checkpoints: every form that weights lie in."""
