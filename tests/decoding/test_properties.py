"""Random trees, random acceptance, random ends of rows and of the cache: the same tokens.

And the same state whether the passes run in one compiled loop, in pieces, or one by one from
Python.
"""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssjax.decoding import decoder as decoder_module
from ssjax.decoding import loop
from ssjax.decoding.drafters import PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows

ROWS, BUCKET, CAPACITY, NODES, DEPTH = 3, 16, 32, 7, 4
FIELDS = ("tokens", "born", "length", "limit", "done", "calls", "drafted")

passes_program = jax.jit(loop.decode_passes, static_argnums=(0, 2, 3))
step_program = jax.jit(loop.decode_step, static_argnums=(0, 2, 3))


@pytest.fixture(scope="module")
def machine(endless, kit):
    """Compiled once: a drafter whose trees plain Python writes; prompts as long as the bucket."""
    write = {"tree": lambda row, sequence: []}
    drafter = kit.HostDrafter(NODES, DEPTH, write)
    prompts = np.array(kit.random_prompts(31, ROWS, (BUCKET,)), np.int32)
    keys = decoder_module.row_keys(np.zeros(ROWS, np.int32), np.arange(ROWS, dtype=np.int32))

    def static(drafter, temperature):
        spec = DecodeSpec(CAPACITY, kit.NEVER, kit.PAD, Sampling(temperature), True)
        return endless.model, endless.params, drafter, spec

    def start(drafter, temperature, lengths, limits):
        inside = np.arange(BUCKET) < lengths[:, None]
        padded = np.where(inside, prompts, kit.PAD)
        return decoder_module.prefill_program(
            *static(drafter, temperature), Rows(padded, lengths, limits, keys)
        )

    return write, drafter, static, start, kit


def random_trees(seed, truths, right):
    """write["tree"]: any shape, duplicates, unused nodes; a node is right with a probability."""

    def tree(row, sequence):
        rng = np.random.default_rng([seed, row, len(sequence)])
        nodes, depths = [], [0]
        for _ in range(rng.integers(0, NODES)):
            used = [k for k, depth in enumerate(depths) if 0 <= depth < DEPTH]
            parent = int(rng.choice(used))
            if rng.random() < 0.1:
                parent = -1
            depth = depths[parent] + 1 if parent >= 0 else -1
            position = len(sequence) - 1 + max(depth, 0)
            token = int(rng.integers(0, 50))
            if rng.random() < right and position < len(truths[row]):
                token = truths[row][position]
            nodes.append((token, parent))
            depths.append(depth)
        return nodes

    return tree


def per_row(numbers):
    return st.tuples(*[numbers] * ROWS)


@pytest.mark.parametrize("temperature", [1.3, pytest.param(0.0, marks=pytest.mark.stress)])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32 - 1),
    right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    lengths=per_row(st.integers(1, BUCKET)),
    # Tokens that the row has room for after the limit; below 0 more are asked for than fit.
    spare=per_row(st.one_of(st.integers(-2, DEPTH + 1), st.integers(0, CAPACITY))),
    pieces=st.lists(st.integers(0, 9), max_size=4),
)
def test_nothing_changes_the_tokens(machine, seed, right, lengths, spare, temperature, pieces):
    write, drafter, static, start, kit = machine
    lengths = np.array(lengths, np.int32)
    room = CAPACITY - lengths
    limits = np.maximum(room - np.array(spare, np.int32), 0)
    plain = decoder_module.decode_program(
        *static(PlainDrafter(), temperature),
        start(PlainDrafter(), temperature, lengths, np.full(ROWS, CAPACITY, np.int32)),
    )
    truths = np.asarray(plain.tokens)
    assert np.asarray(plain.length).tolist() == [CAPACITY] * ROWS
    write["tree"] = random_trees(seed, truths.tolist(), right)

    program = static(drafter, temperature)
    state = start(drafter, temperature, lengths, limits)
    for number in pieces:
        state = passes_program(*program, state, number)
    state = decoder_module.decode_program(*program, state)
    found = decoder_module.completions_of(state, lengths, kit.NEVER, DEPTH)
    for row, completion in enumerate(found):
        new = min(limits[row], room[row])
        assert completion.tokens == tuple(truths[row, lengths[row] :][:new].tolist())
        assert sum(completion.runs) == new and completion.calls <= max(new - 1, 0)
        assert all(run <= DEPTH + 1 for run in completion.runs)
    after = np.arange(CAPACITY) >= np.asarray(state.length)[:, None]
    assert (np.asarray(state.tokens)[after] == kit.PAD).all()

    one_by_one = start(drafter, temperature, lengths, limits)
    while bool(loop.keep_going(one_by_one)):
        one_by_one = step_program(*program, one_by_one)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(state, name), getattr(one_by_one, name), name)
    leaves = zip(*map(jax.tree.leaves, (state.cache, one_by_one.cache)), strict=True)
    for ours, theirs in leaves:
        scale = max(float(np.abs(theirs).max()), 1.0)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale, rtol=0)
        np.testing.assert_array_equal(ours == 0, theirs == 0)
