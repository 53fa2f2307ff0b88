"""The compiled decoder: speculate, verify, accept.

Reading order: `tree` (draft trees as data), `sampling` (how a next token is drawn),
`verify` (the one acceptance rule), `drafters` (who writes the next tree), `loop` (the state
and the `lax.while_loop`), `decoder` (prompts in, completions out). Imports jax, flax and
numpy only.
"""
