"""The compiled decoder: speculate, verify, accept.

Reading order: `tree` (draft trees as data), `sampling` (how a next token is drawn), `acceptance`
(which draft nodes are kept), `drafters` (who writes the next tree), `state` (what passes carry),
`forward` (what a pass computes), `loop` (the `lax.while_loop`), `request` and `completion` (what is
asked for, what comes of it), `decoder` (prompts in, completions out). Imports jax, flax and numpy
only.
"""
