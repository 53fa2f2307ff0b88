"""The whole model against the NumPy oracle, and its forms against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import HIDDEN_TOLERANCE, LOGIT_TOLERANCE

from ssjax.models.attention import Causal, rotate_stream_values
from ssjax.models.cache import cache_from_block
from ssjax.models.outputs import Anchors
from ssjax.models.parameters import cast, count, merge, stack_layers, unstack_layers

LENGTHS = (3, 7, 1, 6)
WIDTH, J = 7, 3


@pytest.fixture(scope="module")
def batch():
    """Ragged rows, padded with 0 on the right; two anchors a row."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 13, n).tolist() for n in LENGTHS]
    anchors = np.array([[1, 2], [0, 6], [0, 0], [3, 5]])
    return rows, oracles.pad(rows, WIDTH)[0], anchors


@pytest.fixture(scope="module")
def run():
    """(model, params, tokens, anchors, num_streams) -> output."""

    def apply(model, params, tokens, anchors=None, num_streams=0):
        anchors = None if anchors is None else jnp.asarray(anchors)
        return oracles.run_model(model, params, tokens, anchors=anchors, num_streams=num_streams)

    return apply


@pytest.fixture(scope="module")
def output(tiny, batch, run):
    """The tiny model with all streams over the batch."""
    return run(*tiny, batch[1], batch[2], J)


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"num_kv_heads": 4},
        {"num_kv_heads": 1, "num_stream_layers": 3},  # no trunk at all
    ],
    ids=["gqa", "untied", "mha", "mqa-no-trunk"],
)
def test_equals_numpy_with_an_explicit_mask(batch, run, changes):
    model = oracles.make_model(**changes)
    params = oracles.random_params(model, seed=2)
    assert ("lm_head" in params) == (not model.config.tie_embeddings)
    assert ("trunk" in params) == (model.streams.num_stream_layers < 3)
    rows, tokens, anchors = batch
    output = run(model, params, tokens, anchors, J)
    main = oracles.logits_of(model, params, output.hidden)
    streams = oracles.logits_of(model, params, output.stream_hidden)
    for b, row in enumerate(rows):
        expected, expected_streams = oracles.forward(params, model.config, row, anchors[b], J)
        np.testing.assert_allclose(main[b, : len(row)], expected, atol=LOGIT_TOLERANCE, rtol=0)
        np.testing.assert_allclose(streams[b], expected_streams, atol=LOGIT_TOLERANCE, rtol=0)


PARENTS = (-1, 0, 0, 1, 1, 2, -1)  # the last node is unused
DEPTHS = (0, 1, 1, 2, 2, 2, 0)
TREE_TOKENS = (4, 1, 2, 7, 8, 7, 0)


@pytest.fixture(scope="module")
def run_tree(tiny):
    """run_tree(tokens) -> output of the tree above at the start, streams beside each node."""
    mask = np.eye(7, dtype=bool)
    for node in range(1, 6):
        mask[node] |= mask[PARENTS[node]]

    def run(tokens):
        output = oracles.apply(
            *tiny,
            None,
            jnp.array([tokens]),
            jnp.array([DEPTHS]),
            jnp.asarray(mask[None]),
            anchors=jnp.arange(7)[None],
            num_streams=J,
        )
        return output, mask

    return run


def test_tree_mask_and_positions_equal_numpy(tiny, run_tree):
    """A block with an ancestor mask, depths as positions, at the start."""
    model, params = tiny
    output, mask = run_tree(TREE_TOKENS)
    main, streams = oracles.forward(
        params, model.config, np.array(TREE_TOKENS), range(7), J, DEPTHS, mask
    )
    got = oracles.logits_of(model, params, output.hidden)[0]
    np.testing.assert_allclose(got, main, atol=LOGIT_TOLERANCE, rtol=0)
    got = oracles.logits_of(model, params, output.stream_hidden)[0]
    np.testing.assert_allclose(got, streams, atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("changed", range(7))
def test_siblings_cousins_and_unused_nodes_do_not_move_a_bit(run_tree, changed):
    """Another token at one node: nothing moves but that node, what is below it, their streams."""
    tokens = np.array(TREE_TOKENS)
    tokens[changed] = 11
    before, mask = run_tree(TREE_TOKENS)
    after, _ = run_tree(tokens)
    for field in ("hidden", "stream_hidden"):
        ours, theirs = (np.asarray(getattr(output, field))[0] for output in (before, after))
        moved = (ours != theirs).reshape(7, -1).any(axis=1)
        np.testing.assert_array_equal(moved, mask[:, changed])


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_cached_equals_uncached(tiny, batch, output, scan):
    """Each row is cut at its own place (0 tokens cached, some, all but one)."""
    model, params = tiny
    _, tokens, _ = batch
    cut = np.array([0, 4, 2, 6])
    model = model.clone(scan=scan)
    params = params if scan else unstack_layers(params)
    whole = oracles.run_model(model, params, tokens)
    cache = cache_from_block(whole.block, jnp.asarray(cut), WIDTH + 2)
    index = np.minimum(cut[:, None] + np.arange(3), WIDTH - 1)
    anchors = jnp.zeros((4, 1), int)
    rest = oracles.apply(
        model,
        params,
        None,
        jnp.asarray(np.take_along_axis(tokens, index, axis=1)),
        jnp.asarray(cut[:, None] + np.arange(3)),
        Causal().dense(3),
        cache,
        jnp.asarray(cut),
        anchors=anchors,
        num_streams=J,
    )
    both = jnp.asarray(np.stack([cut, cut], axis=1))  # twice: the shape of the other tests
    uncached = oracles.run_model(*tiny, tokens, anchors=both, num_streams=J).stream_hidden[:, :1]
    for b, start in enumerate(cut):
        held = min(3, WIDTH - start)
        expected = np.asarray(output.hidden)[b, start : start + held]
        np.testing.assert_allclose(rest.hidden[b, :held], expected, atol=HIDDEN_TOLERANCE, rtol=0)
    np.testing.assert_allclose(rest.stream_hidden, uncached, atol=HIDDEN_TOLERANCE, rtol=0)


def test_poisoned_cache_tail_changes_no_bit(tiny, batch):
    """1e9 from the valid length of each row on."""
    model, params = tiny
    _, tokens, _ = batch
    length = jnp.array([0, 4, 2, 6])
    block = oracles.run_model(model, params, tokens).block
    cache = cache_from_block(block, length, WIDTH + 2)
    beyond = (jnp.arange(WIDTH + 2) >= length[:, None])[:, None, :, None]
    poisoned = jax.tree.map(lambda x: jnp.where(beyond, 1e9, x), cache)
    assert jax.tree.leaves(poisoned)[0].max() == 1e9
    outputs = [
        oracles.apply(
            model,
            params,
            None,
            jnp.asarray(tokens[:, :3]),
            length[:, None] + jnp.arange(3),
            Causal().dense(3),
            c,
            length,
            anchors=jnp.zeros((4, 1), int),
            num_streams=J,
        )
        for c in (cache, poisoned)
    ]
    np.testing.assert_array_equal(outputs[0].hidden, outputs[1].hidden)
    np.testing.assert_array_equal(outputs[0].stream_hidden, outputs[1].stream_hidden)


def test_scanned_equals_unrolled(tiny, batch, output, run):
    model, params = tiny
    unrolled = run(model.clone(scan=False), unstack_layers(params), batch[1], batch[2], J)
    for field in ("hidden", "stream_hidden", "trunk_hidden"):
        got, expected = getattr(unrolled, field), getattr(output, field)
        np.testing.assert_allclose(got, expected, atol=HIDDEN_TOLERANCE, rtol=0)
    for stack in ("trunk", "stream_layers"):
        scanned = getattr(output.block, stack)
        for i, kv in enumerate(getattr(unrolled.block, stack)):
            np.testing.assert_allclose(kv.keys, scanned.keys[i], atol=HIDDEN_TOLERANCE, rtol=0)
            np.testing.assert_allclose(kv.values, scanned.values[i], atol=HIDDEN_TOLERANCE, rtol=0)


def test_bfloat16_stays_near_float32(tiny, batch, output, run):
    model, params = tiny
    wide = oracles.logits_of(model, params, output.hidden)
    narrow_model = oracles.make_model(dtype="bfloat16")
    narrow = run(narrow_model, cast(params, jnp.bfloat16), batch[1], batch[2], J)
    assert narrow.hidden.dtype == jnp.bfloat16
    logits = oracles.logits_of(narrow_model, params, narrow.hidden)
    assert logits.dtype == np.float32
    assert 1e-4 < relative(logits, wide) < oracles.BFLOAT16_TOLERANCE


# Streams.


def test_streams_off_gives_the_same_main_rows_to_the_bit(tiny, batch, output, run):
    off = run(*tiny, batch[1])
    assert off.stream_hidden is None
    np.testing.assert_array_equal(off.hidden, output.hidden)
    for a, b in zip(jax.tree.leaves(off.block), jax.tree.leaves(output.block), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stream_embedding_cannot_move_a_bit_of_the_main_rows(tiny, batch, output, run):
    model, params = tiny
    moved = {**params, "stream_embedding": params["stream_embedding"] * -50 + 3}
    other = run(model, moved, batch[1], batch[2], J)
    np.testing.assert_array_equal(other.hidden, output.hidden)
    for a, b in zip(jax.tree.leaves(other.block), jax.tree.leaves(output.block), strict=True):
        np.testing.assert_array_equal(a, b)
    assert relative(other.stream_hidden, output.stream_hidden) > 0.1


def test_later_streams_do_not_touch_earlier_ones(tiny, batch, output, run):
    model, params = tiny
    for j in range(1, J):
        embedding = params["stream_embedding"].at[j:].multiply(-20)
        other = run(model, {**params, "stream_embedding": embedding}, batch[1], batch[2], J)
        np.testing.assert_array_equal(other.stream_hidden[:, :, :j], output.stream_hidden[:, :, :j])
        assert relative(other.stream_hidden[:, :, j:], output.stream_hidden[:, :, j:]) > 0.1


def test_fewer_streams_are_a_prefix_of_more(tiny, batch, output, run):
    cut = run(*tiny, batch[1], batch[2], 2).stream_hidden
    expected = output.stream_hidden[:, :, :2]
    np.testing.assert_allclose(cut, expected, atol=HIDDEN_TOLERANCE, rtol=0)


def test_streams_of_other_anchors_are_not_seen(tiny, batch, output, run):
    """The second anchor moves; the streams of the first keep every bit."""
    anchors = batch[2].copy()
    anchors[:, 1] = [1, 3, 0, 0]
    other = run(*tiny, batch[1], anchors, J)
    np.testing.assert_array_equal(other.stream_hidden[:, 0], output.stream_hidden[:, 0])
    assert relative(other.stream_hidden[:2, 1], output.stream_hidden[:2, 1]) > 0.1


def test_streams_depend_on_earlier_streams(tiny, batch, output, run):
    """The reverse of the two tests above: stream 3 does read stream 1 of its own anchor."""
    model, params = tiny
    embedding = params["stream_embedding"].at[0].multiply(-20)
    other = run(model, {**params, "stream_embedding": embedding}, batch[1], batch[2], J)
    assert relative(other.stream_hidden[:, :, 2], output.stream_hidden[:, :, 2]) > 1e-3


def test_deferred_streams_equal_fused(tiny, batch):
    """`speculate` after a call with a cache of ragged length."""
    model, params = tiny
    tokens = jnp.asarray(batch[1])
    length = jnp.array([0, 4, 2, 6])
    cache = cache_from_block(oracles.run_model(model, params, tokens).block, length, WIDTH)
    positions = length[:, None] + jnp.arange(4)
    mask = jnp.broadcast_to(Causal().dense(4), (4, 4, 4))
    anchors = jnp.array([[0, 3], [1, 2], [3, 3], [2, 0]])
    call = (tokens[:, 2:6], positions, mask, cache, length)
    fused = oracles.apply(model, params, None, *call, anchors=anchors, num_streams=J)
    first = oracles.apply(model, params, None, *call)
    rows = jnp.arange(4)[:, None]
    left = Anchors(first.trunk_hidden[rows, anchors], positions[rows, anchors], mask[rows, anchors])
    later = oracles.apply(
        model, params, "speculate", left, first.block, positions, cache, length, num_streams=J
    )
    np.testing.assert_allclose(later, fused.stream_hidden, atol=HIDDEN_TOLERANCE, rtol=0)


def test_causality_by_gradients(tiny, batch):
    """Which input rows move an output row: the past alone, and all of it."""
    model, params = tiny
    tokens = jnp.arange(WIDTH)[None]  # distinct tokens: a row of the table is a position

    def outputs(table):
        output = oracles.run_model(
            model, {**params, "embedder": table}, tokens, anchors=jnp.array([[2, 5]]), num_streams=J
        )
        weight = jnp.cos(jnp.arange(output.hidden.shape[-1]))  # a plain sum is nearly constant
        return output.hidden[0] @ weight, output.stream_hidden[0] @ weight

    main, streams = jax.jit(jax.jacrev(outputs))(params["embedder"])
    reach = np.abs(np.asarray(main)).max(axis=-1)[:, :WIDTH] > 0
    np.testing.assert_array_equal(reach, np.tril(np.ones((WIDTH, WIDTH), bool)))
    reach = np.abs(np.asarray(streams)).max(axis=-1)[..., :WIDTH] > 0
    for a, anchor in enumerate((2, 5)):
        expected = np.arange(WIDTH) <= anchor
        np.testing.assert_array_equal(reach[a], np.tile(expected, (J, 1)))


# Other ways to begin the streams.

# Angles of 22.5 degrees and more: J is 3.
ROTATED = {"variation": "rotation", "rotation_length": 1}
MAPPED = {"init_rank": 2}
ROOTED = {"root_rank": 2}


@pytest.mark.parametrize(
    "changes",
    [
        ROTATED,
        MAPPED,
        ROOTED,
        ROTATED | MAPPED | {"main_reads_streams": True, "num_kv_heads": 4},
    ],
    ids=["rotation", "map", "root", "both-read-by-main"],
)
def test_variants_equal_numpy(batch, run, changes):
    model = oracles.make_model(**changes)
    params = oracles.random_params(model, seed=2)
    angle = np.pi / (2 * (1 + J)) if "variation" in changes else 0.0
    assert ("stream_embedding" in params) == (angle == 0)
    rows, tokens, anchors = batch
    anchors = anchors if not model.streams.main_reads_streams else anchors[:, :1]
    output = run(model, params, tokens, anchors, J)
    main = oracles.logits_of(model, params, output.hidden)
    streams = oracles.logits_of(model, params, output.stream_hidden)
    for b, row in enumerate(rows):
        expected, expected_streams = oracles.forward(
            params,
            model.config,
            row,
            anchors[b],
            J,
            angle=angle,
            main_reads_streams=model.streams.main_reads_streams,
            after=tokens[b, min(len(row), tokens.shape[1] - 1)],
        )
        np.testing.assert_allclose(main[b, : len(row)], expected, atol=LOGIT_TOLERANCE, rtol=0)
        np.testing.assert_allclose(streams[b], expected_streams, atol=LOGIT_TOLERANCE, rtol=0)


def test_rotation_turns_channels_as_rotary_positions_do():
    """One pair by hand: stream 1 by 30 degrees, 2 by 60, 3 by 90; bfloat16 stays bfloat16."""
    values = jnp.broadcast_to(jnp.array([2.0, 5.0, 0.0, 5.0]), (1, 2, 3, 1, 4))
    turned = np.asarray(rotate_stream_values(values, np.pi / 6))
    expected = [[3**0.5, 1.0], [1.0, 3**0.5], [0.0, 2.0]]
    np.testing.assert_allclose(turned[0, 1, :, 0, ::2], expected, atol=1e-6)
    assert rotate_stream_values(values.astype(jnp.bfloat16), 0.1).dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def variant(tiny):
    """The tiny model with rotated streams that start after maps; the same base weights."""
    model = oracles.make_model(**ROTATED, **MAPPED, **ROOTED)
    params = oracles.random_params(model, seed=3)
    base = {k: v for k, v in tiny[1].items() if k != "stream_embedding"}
    return model, params | base


def test_variants_cannot_move_a_bit_of_the_main_rows(variant, batch, output, run):
    other = run(*variant, batch[1], batch[2], J)
    np.testing.assert_array_equal(other.hidden, output.hidden)
    for a, b in zip(jax.tree.leaves(other.block), jax.tree.leaves(output.block), strict=True):
        np.testing.assert_array_equal(a, b)
    assert relative(other.stream_hidden, output.stream_hidden) > 0.1


def test_variants_may_lose_streams_at_the_end(variant, batch, run):
    """The angle is that of the J streams of the model, however many of them run."""
    whole = run(*variant, batch[1], batch[2], J).stream_hidden
    cut = run(*variant, batch[1], batch[2], 2).stream_hidden
    np.testing.assert_allclose(cut, whole[:, :, :2], atol=HIDDEN_TOLERANCE, rtol=0)


def test_streams_that_start_from_the_root_cannot_run_beside_a_draft():
    """Nobody has drawn the token after its nodes yet; deferred, the caller says which it is."""
    model = oracles.make_model(**ROOTED)
    params = oracles.random_params(model, seed=2)
    tree, nodes = np.zeros((1, 2), np.int32), np.arange(2)[None]
    mask = np.tril(np.ones((1, 2, 2), bool))
    with pytest.raises(ValueError, match="start from their roots"):
        model.apply({"params": params}, tree, nodes, mask, anchors=nodes, num_streams=J)


def test_an_untrained_map_is_the_identity(tiny, batch, output, run):
    model, params = tiny
    down, up = jnp.ones((2, 24)), jnp.zeros((24, 2))
    mapped = params | {"stream_init_down": down, "stream_init_up": up}
    other = run(oracles.make_model(**MAPPED), mapped, batch[1], batch[2], J)
    np.testing.assert_array_equal(other.stream_hidden, output.stream_hidden)


# Parameters.


def test_stack_and_unstack_are_inverse(tiny):
    _, params = tiny
    unrolled = unstack_layers(params)
    assert set(unrolled["stream_layers"]) == {"layers_0", "layers_1"}
    back = stack_layers(unrolled)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stack_keeps_the_order_of_eleven_layers():
    """layers_10 comes after layers_9, not after layers_1."""
    layers = {f"layers_{i}": {"weight": jnp.full(2, i)} for i in range(11)}
    stacked = stack_layers({"trunk": layers})["trunk"]["layers"]["weight"]
    np.testing.assert_array_equal(stacked[:, 0], np.arange(11))


def test_count_by_hand(tiny):
    layer = 2 * 24 + 32 * 24 + 2 * 16 * 24 + 24 * 32 + 3 * 40 * 24
    assert count(tiny[1]) == 13 * 24 + 3 * 24 + 24 + 3 * layer


def test_merge_joins_disjoint_trees_only():
    trainable, frozen = {"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "c": 4}
    assert merge(trainable, frozen) == {"a": {"x": 1, "y": 3}, "b": 2, "c": 4}
    assert frozen == {"a": {"y": 3}, "c": 4}
    assert merge({}, frozen) == frozen and merge(trainable, {}) == trainable
    for overlap in ({"a": {"y": 1}}, {"c": 1}, {"a": 1}, {"c": {"d": 1}}):
        with pytest.raises(ValueError, match="both trainable and frozen"):
            merge(overlap, frozen)
