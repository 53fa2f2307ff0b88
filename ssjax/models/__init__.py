"""The decoder with multi-stream attention: one code for training, prefill and verification.

Files, in reading order: `attention` (the one attention primitive and the dimension letters),
`cache` (keys and values of accepted tokens), `layout` (which rows a call has, and what they see),
`projection` (linear maps and their LoRA), `layers` (norm, MLP, attention, one decoder layer),
`transformer` (trunk, stream layers), `head` (scores of the vocabulary), `parameters` (layer
stacking, counting, splitting). Imports jax, flax and numpy only.
"""
