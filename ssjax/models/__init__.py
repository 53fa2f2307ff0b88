"""The decoder with multi-stream attention: one code for training, prefill and verification.

Files, in reading order: `attention` (the one attention primitive and the dimension
letters), `cache` (keys and values of accepted tokens), `layers` (norm, projection, gated
MLP, one decoder block), `transformer` (trunk, stream layers, head), `parameters` (layer
stacking, counting, splitting). Imports jax, flax and numpy only.
"""
