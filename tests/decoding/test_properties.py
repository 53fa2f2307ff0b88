"""Random trees, random acceptance, random ends of rows and of the cache: the same tokens."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssjax.decoding import decoder as decoder_module
from ssjax.decoding import loop
from ssjax.decoding.drafters import PlainDrafter
from ssjax.decoding.loop import DecodeSpec
from ssjax.decoding.sampling import Sampling

ROWS, BUCKET, CAPACITY, NODES, DEPTH = 3, 16, 64, 7, 4
ROOM = CAPACITY - BUCKET  # the longest prompt and the longest output fill the cache
LENGTHS = (16, 1, 9)


@pytest.fixture(scope="module")
def machine(endless, kit):
    """Compiled once: programs of a drafter whose trees plain Python writes, and plain outputs."""
    write = {"tree": lambda row, sequence: []}
    drafter = kit.HostDrafter(NODES, DEPTH, write)
    prompts = kit.random_prompts(31, ROWS, LENGTHS)
    padded = np.full((ROWS, BUCKET), kit.PAD, np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    plain = {
        t: endless.generate(
            prompts, ROOM, drafter=PlainDrafter(), sampling=Sampling(t), deferred=True,
            batch_size=ROWS, seed=0,
        )
        for t in (0.0, 1.3)
    }  # fmt: skip
    assert all(len(completion.tokens) == ROOM for c in plain.values() for completion in c)
    return write, drafter, prompts, padded, plain


def random_trees(rng, truths, right):
    """write["tree"]: any shape, duplicates, unused nodes; a node is right with a probability."""

    def tree(row, sequence):
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


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32 - 1),
    right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    limits=st.tuples(*[st.sampled_from([0, 1, 2, 5, 31, ROOM - 1, ROOM])] * ROWS),
    temperature=st.sampled_from([0.0, 1.3]),
    pieces=st.lists(st.integers(0, 9), max_size=4),
)
def test_nothing_changes_the_tokens(
    endless, machine, kit, seed, right, limits, temperature, pieces
):
    write, drafter, prompts, padded, plain = machine
    expected = plain[temperature]
    truths = [[*p, *c.tokens] for p, c in zip(prompts, expected, strict=True)]
    write["tree"] = random_trees(np.random.default_rng(seed), truths, right)
    spec = DecodeSpec(CAPACITY, kit.NEVER, kit.PAD, Sampling(temperature), True)
    static = (endless.model, endless.params, drafter, spec)
    keys = decoder_module._row_keys(np.zeros(ROWS, np.int32), np.arange(ROWS, dtype=np.int32))
    lengths = np.array(LENGTHS, np.int32)
    state = decoder_module.prefill_program(
        *static, padded, lengths, np.array(limits, np.int32), keys
    )
    for number in pieces:
        state = _passes(*static, state, number)
    state = decoder_module.decode_program(*static, state)
    found = decoder_module.completions_of(state, lengths, kit.NEVER)
    for completion, whole, limit in zip(found, expected, limits, strict=True):
        assert completion.tokens == whole.tokens[:limit]
        assert sum(completion.runs) == limit and completion.calls <= max(limit - 1, 0)
        assert all(run <= DEPTH + 1 for run in completion.runs)
    behind = np.arange(CAPACITY) >= np.asarray(state.length)[:, None]
    assert (np.asarray(state.tokens)[behind] == kit.PAD).all()


_passes = functools.partial(jax.jit, static_argnums=(0, 2, 3))(loop.decode_passes)
