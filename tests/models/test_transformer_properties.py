"""What the transformer must not depend on: form, cache, streams, later tokens, siblings.

"Bit-identical" compares two runs of one compiled program; other comparisons have a tolerance.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.config import ModelConfig, StreamsConfig
from ssjax.models.cache import cache_from_block, write_path
from ssjax.models.parameters import cast, stack_layers, unstack_layers
from ssjax.models.transformer import Transformer, causal_mask

SAME = 1e-5  # float32, the same sums in another order; for values up to 1, or of their largest
LOGITS = 1e-4  # float32 logits of size 10
BFLOAT16 = 0.1  # bfloat16 against float32 hidden states, root mean square, of size 1
MOVED = 1e-3  # what is said to change changes by more than this
B, T, V, J = 4, 6, 19, 3
SLOTS = 9

CONFIG = ModelConfig(
    vocab_size=V,
    embed_dim=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=24,
)
MODEL = Transformer(CONFIG, StreamsConfig(J, num_stream_layers=2), scan=True)


def draw_params(seed=11):
    """Scanned parameters from NumPy: projections twice as wide as at initialisation.

    Three times would lift float32 rounding of stream logits to 9e-5 (against float64).
    """
    rng = np.random.default_rng(seed)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2, 2), bool)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens, mask)["params"]

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key != "weight":
            return jnp.asarray(noise, jnp.float32)
        if path[-2].key.endswith("_proj"):
            return jnp.asarray(2 * noise / np.sqrt(leaf.shape[-1]), jnp.float32)
        return jnp.asarray(1 + 0.2 * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


PARAMS = draw_params()


@functools.partial(jax.jit, static_argnames=("model", "num_streams"))
def run(params, tokens, positions, mask, cache=None, length=None, anchors=None, *,
        num_streams=0, model=MODEL):  # fmt: skip
    return model.apply(
        {"params": params}, tokens, positions, mask, cache, length,
        anchors=anchors, num_streams=num_streams,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "num_streams"))
def speculate(params, *arguments, num_streams=J, model=MODEL):
    return model.apply({"params": params}, *arguments, num_streams, method="speculate")


def positions_from(start, count):
    return jnp.asarray(np.asarray(start)[:, None] + np.arange(count))


def random_tokens(seed, width=T, rows=B):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (rows, width)), jnp.int32)


def causal_run(params=PARAMS, tokens=None, anchors=None, **kwargs):
    tokens = random_tokens(0) if tokens is None else tokens
    positions = positions_from(np.zeros(len(tokens), int), tokens.shape[1])
    return run(params, tokens, positions, causal_mask(tokens.shape[1]), anchors=anchors, **kwargs)


ANCHORS = jnp.array([[1, 2, 5], [0, 5, 3], [4, 4, 0], [3, 1, 2]])


def with_streams(params=PARAMS, tokens=None, anchors=ANCHORS):
    """All streams at three anchors a row: one compiled program for most tests."""
    return causal_run(params, tokens, anchors, num_streams=J)


def assert_close(a, b):
    """Residual rows, keys and values are not normed: their error is a share of the largest."""
    largest = max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(a, b, atol=SAME * largest, rtol=0)


def assert_logits_close(a, b):
    np.testing.assert_allclose(a, b, atol=LOGITS, rtol=0)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def moved(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


def head(hidden):
    """The tied LM head in float64."""
    return np.asarray(hidden, np.float64) @ np.asarray(PARAMS["embedder"], np.float64).T


# Forms of the parameters.


def test_scanned_equals_unrolled():
    unrolled = unstack_layers(PARAMS)
    assert_same_bits(stack_layers(unrolled), PARAMS)
    assert_same_bits(unstack_layers(stack_layers(unrolled)), unrolled)
    first, second = (unrolled["stream_layers"][f"layers_{i}"]["mlp"] for i in range(2))
    assert moved(first["up_proj"]["weight"], second["up_proj"]["weight"]) > MOVED
    got = causal_run(unrolled, anchors=ANCHORS, num_streams=J, model=MODEL.clone(scan=False))
    expected = with_streams()
    for name in ("hidden", "stream_hidden", "trunk_hidden"):
        assert_close(getattr(got, name), getattr(expected, name))
    for stack in ("trunk", "stream_layers"):
        layers = getattr(got.block, stack)
        joined = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        jax.tree.map(assert_close, joined, getattr(expected.block, stack))


# The cache.


def test_three_cached_calls_equal_one_without_cache():
    """Prefill of ragged prompts (one empty), a causal call, a partial write, a second call.

    Row 0 starts with nothing cached: its prefix segment is masked in full.
    """
    prompt = np.array([0, 2, 5, 3])
    kept = np.array([2, 0, 3, 1])  # of the three tokens of the second call
    whole = random_tokens(2, width=T + 5)
    expected = causal_run(tokens=whole, anchors=jnp.zeros((B, 1), int), num_streams=J)

    def tokens_from(start, count):
        index = start[:, None] + np.arange(count)
        return jnp.take_along_axis(whole, jnp.asarray(index), axis=1)

    # Behind each prompt the prefill sees wrong tokens, as padding would be.
    wrong = np.arange(T) >= prompt[:, None]
    prefill = causal_run(tokens=jnp.where(wrong, (whole[:, :T] + 1) % V, whole[:, :T]))
    cache = cache_from_block(prefill.block, jnp.asarray(prompt), SLOTS)
    anchors = jnp.zeros((B, 1), int)

    def call(cache, length):
        return run(
            PARAMS, tokens_from(length, 3), positions_from(length, 3), causal_mask(3),
            cache, jnp.asarray(length), anchors, num_streams=J,
        )  # fmt: skip

    def check(output, length):
        streams_at = causal_run(tokens=whole, anchors=jnp.asarray(length)[:, None], num_streams=J)
        assert_close(output.stream_hidden, streams_at.stream_hidden)
        for b, start in enumerate(length):
            assert_close(output.hidden[b], expected.hidden[b, start : start + 3])
            assert_close(output.trunk_hidden[b], expected.trunk_hidden[b, start : start + 3])
            for got, want in zip(
                jax.tree.leaves(output.block), jax.tree.leaves(expected.block), strict=True
            ):
                assert_close(got[:, b], want[:, b, :, start : start + 3])

    second = call(cache, prompt)
    check(second, prompt)
    path = jnp.tile(jnp.arange(3), (B, 1))
    cache = jax.jit(write_path)(
        cache, second.block, path, jnp.asarray(prompt), jnp.asarray(kept)
    )  # fmt: skip
    check(call(cache, prompt + kept), prompt + kept)


def cached_call(cache, length, tokens):
    return run(
        PARAMS, tokens, positions_from(length, 3), causal_mask(3), cache, jnp.asarray(length),
        jnp.zeros((B, 1), int), num_streams=J,
    )  # fmt: skip


def test_what_lies_behind_the_length_changes_no_bit():
    length, tokens = np.array([0, 2, 5, 3]), random_tokens(4, width=3)
    cache = cache_from_block(causal_run().block, jnp.asarray(length), SLOTS)
    behind = (jnp.arange(SLOTS) >= jnp.asarray(length)[:, None])[:, None, :, None]
    clean = cached_call(cache, length, tokens)
    for poison in (1e9, -1e9):
        poisoned = jax.tree.map(lambda x, value=poison: jnp.where(behind, value, x), cache)
        assert abs(jax.tree.leaves(poisoned)[0]).max() == 1e9
        assert_same_bits(cached_call(poisoned, length, tokens), clean)
    last_valid = (jnp.arange(SLOTS) == jnp.asarray(length)[:, None] - 1)[:, None, :, None]
    seen = cached_call(
        jax.tree.map(lambda x: jnp.where(last_valid, x + 1, x), cache), length, tokens
    )
    assert_same_bits(seen.hidden[0], clean.hidden[0])  # no valid slot
    for b in range(1, B):
        assert moved(seen.hidden[b], clean.hidden[b]) > MOVED


def test_empty_prefix_equals_no_cache():
    """A cache of which nothing is valid, in every row."""
    tokens, length = random_tokens(4, width=3), np.zeros(B, int)
    cache = jax.tree.map(
        lambda x: jnp.full((*x.shape[:-2], SLOTS, x.shape[-1]), 7.0), causal_run().block
    )
    expected = causal_run(tokens=tokens, anchors=jnp.zeros((B, 1), int), num_streams=J)
    got = cached_call(cache, length, tokens)
    assert_close(got.hidden, expected.hidden)
    assert_close(got.stream_hidden, expected.stream_hidden)


# Streams.


def test_streams_do_not_move_main_rows():
    off, on = causal_run(), with_streams()
    assert off.stream_hidden is None and on.stream_hidden.shape == (B, 3, J, CONFIG.embed_dim)
    assert_close(off.hidden, on.hidden)
    assert_close(off.trunk_hidden, on.trunk_hidden)
    jax.tree.map(assert_close, off.block, on.block)


@pytest.mark.parametrize("value", [0.0, 1e6, np.nan, np.inf])
def test_no_stream_embedding_can_move_a_bit_of_a_main_row(value):
    """Not even NaN: no main row, key or value has a stream among its inputs."""
    expected = with_streams()
    embedding = PARAMS["stream_embedding"]
    other = with_streams({**PARAMS, "stream_embedding": jnp.full_like(embedding, value)})
    assert not np.allclose(other.stream_hidden, expected.stream_hidden, atol=MOVED)
    assert_same_bits(other.replace(stream_hidden=0), expected.replace(stream_hidden=0))


@pytest.mark.parametrize("stream", range(J))
def test_one_entry_of_a_stream_embedding_moves_that_stream_and_later_ones(stream):
    expected = with_streams()
    embedding = PARAMS["stream_embedding"].at[stream, 5].add(2.0)
    other = with_streams({**PARAMS, "stream_embedding": embedding})
    assert_same_bits(other.hidden, expected.hidden)
    earlier = (slice(None), slice(None), slice(stream))
    assert_same_bits(other.stream_hidden[earlier], expected.stream_hidden[earlier])
    for j in range(stream, J):
        assert moved(other.stream_hidden[:, :, j], expected.stream_hidden[:, :, j]) > MOVED


@pytest.mark.parametrize("fewer", [1, 2])
def test_fewer_streams_are_a_prefix_of_more(fewer):
    cut = causal_run(anchors=ANCHORS, num_streams=fewer)
    assert cut.stream_hidden.shape[2] == fewer
    assert_close(cut.stream_hidden, with_streams().stream_hidden[:, :, :fewer])


def test_streams_of_an_anchor_do_not_see_other_anchors():
    """Where the other anchors are, and in which place an anchor stands, does not matter."""
    expected = with_streams().stream_hidden
    other = with_streams(anchors=ANCHORS.at[:, 1:].set(jnp.array([[0, 3], [1, 1], [5, 3], [4, 3]])))
    assert_same_bits(other.stream_hidden[:, 0], expected[:, 0])
    assert moved(other.stream_hidden[:, 1], expected[:, 1]) > MOVED
    turned = with_streams(anchors=jnp.roll(ANCHORS, 1, axis=1)).stream_hidden
    assert_close(turned, jnp.roll(expected, 1, axis=1))


def test_streams_of_an_anchor_see_tokens_up_to_it_alone():
    tokens = random_tokens(0)
    expected = with_streams(tokens=tokens)
    for b, a in ((0, 0), (1, 2), (3, 0)):
        anchor = int(ANCHORS[b, a])
        later = tokens.at[b, anchor + 1 :].set((tokens[b, anchor + 1 :] + 3) % V)
        assert_same_bits(
            with_streams(tokens=later).stream_hidden[b, a], expected.stream_hidden[b, a]
        )
        for t in range(anchor + 1):
            earlier = tokens.at[b, t].set((tokens[b, t] + 3) % V)
            got = with_streams(tokens=earlier).stream_hidden[b, a]
            assert moved(got, expected.stream_hidden[b, a]) > MOVED


@pytest.mark.parametrize("num_streams", [J, 2])
def test_deferred_streams_equal_fused_without_cache(num_streams):
    fused = causal_run(anchors=ANCHORS, num_streams=num_streams)
    first, rows = causal_run(), jnp.arange(B)[:, None]
    mask = jnp.broadcast_to(causal_mask(T), (B, T, T))
    later = speculate(
        PARAMS, first.trunk_hidden[rows, ANCHORS], ANCHORS, mask[rows, ANCHORS], first.block,
        None, None, num_streams=num_streams,
    )  # fmt: skip
    assert_close(later, fused.stream_hidden)


# Causality.


def test_later_tokens_change_no_bit_of_earlier_rows():
    tokens = random_tokens(0)
    expected = with_streams(tokens=tokens)
    for t in range(T):
        other = with_streams(tokens=tokens.at[:, t].set((tokens[:, t] + 5) % V))
        for name in ("hidden", "trunk_hidden"):
            assert_same_bits(getattr(other, name)[:, :t], getattr(expected, name)[:, :t])
        for got, want in zip(
            jax.tree.leaves(other.block), jax.tree.leaves(expected.block), strict=True
        ):
            assert_same_bits(got[..., :t, :], want[..., :t, :])
        for row in range(t, T):
            assert moved(other.hidden[:, row], expected.hidden[:, row]) > MOVED


def test_rows_of_the_batch_do_not_touch():
    tokens = random_tokens(0)
    expected = with_streams(tokens=tokens)
    other = with_streams(tokens=tokens.at[1].set((tokens[1] + 1) % V))
    for b in (0, 2, 3):
        assert_same_bits(other.hidden[b], expected.hidden[b])
        assert_same_bits(other.stream_hidden[b], expected.stream_hidden[b])
    assert moved(other.hidden[1], expected.hidden[1]) > MOVED


# bfloat16.


def test_bfloat16_is_near_float32_and_logits_are_float32():
    model = MODEL.clone(config=ModelConfig(**{**CONFIG.__dict__, "dtype": "bfloat16"}))
    # Weights as at initialisation: wide ones make attention a near-argmax that rounding flips.
    params = jax.tree.map(lambda x: x / 2 if x.ndim == 3 else x, PARAMS)
    wide = with_streams(params)
    stored = causal_run(cast(params, jnp.bfloat16), anchors=ANCHORS, num_streams=J, model=model)
    computed = causal_run(params, anchors=ANCHORS, num_streams=J, model=model)
    for narrow in (stored, computed):
        for name in ("hidden", "stream_hidden", "trunk_hidden"):
            got, expected = getattr(narrow, name), np.asarray(getattr(wide, name))
            assert got.dtype == jnp.bfloat16
            error = np.sqrt(np.mean((np.asarray(got, np.float32) - expected) ** 2))
            assert 0 < error < BFLOAT16
    logits = model.apply({"params": params}, computed.hidden, method="logits")
    assert logits.dtype == jnp.float32 and logits.shape == (B, T, V)
    # Products of bfloat16 numbers are exact in float32: only the sum rounds.
    table = np.asarray(params["embedder"].astype(jnp.bfloat16), np.float64)
    assert_logits_close(logits, np.asarray(computed.hidden, np.float64) @ table.T)


# Draft trees.

NODES, PREFIXES = 9, np.array([4, 0, 6, 1])


def random_tree(seed):
    """Parents, depths [B, M], ancestor masks [B, M, M] and tokens: few ids, so that twins occur."""
    rng = np.random.default_rng(seed)
    parents = np.array([[-1] + [rng.integers(0, i) for i in range(1, NODES)] for _ in range(B)])
    mask = np.zeros((B, NODES, NODES), bool)
    for b in range(B):
        for node in range(NODES):
            at = node
            while at >= 0:
                mask[b, node, at] = True
                at = parents[b, at]
    return parents, mask.sum(-1) - 1, mask, rng.integers(0, 4, (B, NODES))


def tree_run(tokens, depths, mask):
    """All nodes of the trees of B rows behind cached prefixes of ragged length, with streams."""
    prefix = random_tokens(0)
    cache = cache_from_block(causal_run(tokens=prefix).block, jnp.asarray(PREFIXES), SLOTS)
    return run(
        PARAMS, jnp.asarray(tokens), jnp.asarray(PREFIXES[:, None] + depths), jnp.asarray(mask),
        cache, jnp.asarray(PREFIXES), jnp.tile(jnp.arange(NODES), (B, 1)), num_streams=J,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_each_path_of_a_tree_equals_a_plain_sequence(seed):
    """Each node of each tree becomes one causal sequence: its prefix, then its path."""
    parents, depths, mask, tokens = random_tree(seed)
    tree = tree_run(tokens, depths, mask)
    width = int(PREFIXES.max()) + NODES
    sequences = np.zeros((B * NODES, width), np.int32)
    ends = np.zeros(B * NODES, int)
    for b in range(B):
        prefix = np.asarray(random_tokens(0))[b, : PREFIXES[b]].tolist()
        for node in range(NODES):
            path, at = [], node
            while at >= 0:
                path.insert(0, int(tokens[b, at]))
                at = parents[b, at]
            row = b * NODES + node
            ends[row] = len(prefix + path) - 1
            sequences[row, : ends[row] + 1] = prefix + path
    plain = causal_run(
        tokens=jnp.asarray(sequences), anchors=jnp.asarray(ends[:, None]), num_streams=J
    )
    main = np.asarray(plain.hidden)[np.arange(B * NODES), ends].reshape(B, NODES, -1)
    assert_logits_close(head(tree.hidden), head(main))
    streams = np.asarray(plain.stream_hidden).reshape(B, NODES, J, -1)
    assert_logits_close(head(tree.stream_hidden), head(streams))
    assert depths.max() >= 3


def test_a_node_touches_its_descendants_alone():
    """Siblings, cousins and ancestors keep every bit, in their main rows and streams."""
    _, depths, mask, tokens = random_tree(1)
    expected = tree_run(tokens, depths, mask)
    for node in range(NODES):
        changed = tokens.copy()
        changed[:, node] = (changed[:, node] + 7) % V
        other = tree_run(changed, depths, mask)
        for b in range(B):
            below = mask[b, :, node]
            for name in ("hidden", "stream_hidden"):
                got, want = (np.asarray(getattr(x, name))[b] for x in (other, expected))
                np.testing.assert_array_equal(got[~below], want[~below])
                for descendant in np.flatnonzero(below):
                    assert moved(got[descendant], want[descendant]) > MOVED
