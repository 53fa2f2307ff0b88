"""Teacher-forced logits, as training computes them, equal the decoder's at the same state.

Training: scanned form, one call over the whole sequence, streams beside all anchors. Decoding:
unrolled form, a prefill and then passes over draft trees with a cache. Row i of the batch is
prompt i // 4; i % 4 says how many of its drafted tokens are right: 0, 1, a mixture, 3.

All of it again with streams that are told apart by rotation and start after a map, and with streams
that are corrected by their parents, and with those of the detached mode, where the decoder has the
adapter of the fine-tune folded into the weights. Their sequences are those of the other model: the
main rows are the same.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import AdaptationConfig
from ssjax.decoding import loop
from ssjax.decoding.drafters import PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.models.attention import Causal
from ssjax.models.cache import KVCache
from ssjax.models.lora import merge_lora, merged_adaptation
from ssjax.models.outputs import Anchors
from ssjax.models.parameters import flatten, unflatten
from ssjax.models.parent import make_correction, with_parents
from ssjax.models.transformer import abstract_params
from ssjax.training.losses import anchor_targets

pytestmark = pytest.mark.parametrize(
    ("streaming", "walk"),
    [
        ("embedding", "fused"),
        ("embedding", "deferred"),
        ("rotation", "fused"),
        ("parents", "fused"),
        ("roots", "deferred"),
        pytest.param("detached", "fused", marks=pytest.mark.stress),
        ("detached", "deferred"),
        pytest.param("parents", "deferred", marks=pytest.mark.stress),
        pytest.param("rotation", "deferred", marks=pytest.mark.stress),
    ],
    indirect=True,
    scope="module",
)

TOLERANCE = 1e-4
PROMPT_LENGTHS = (1, 5, 12, 9)
SCHEDULES = 4
LENGTHS = np.repeat(PROMPT_LENGTHS, SCHEDULES).astype(np.int32)
NUM_ROWS = len(LENGTHS)
BUCKET = 12
NUM_NEW = 12
NUM_STREAMS = 3
CAPACITY = BUCKET + NUM_NEW
SAMPLING = Sampling(temperature=1.0)  # a varied target; greedy ones of a random model repeat

# 2 -> 4 -> 6 is the true chain, 1 and 5 are wrong, 3 is a true token in a wrong context, 7 is
# unused. Where the schedule makes 2, 4 or 6 wrong, so are the nodes below.
PARENTS = (-1, 0, 0, 1, 2, 2, 4, -1)
OFFSETS = (0, 1, 0, 0, 0, 1, 0, 0)
NUM_NODES = len(PARENTS)
DEPTHS = (0, 1, 1, 2, 2, 2, 3, 0)
PATHS = ((0,), (0, 1), (0, 2), (0, 1, 3), (0, 2, 4), (0, 2, 5), (0, 2, 4, 6), (7,))
NODE_MASK = np.zeros((NUM_NODES, NUM_NODES), bool)
for _node, _path in enumerate(PATHS):
    NODE_MASK[_node, list(_path)] = True


@pytest.fixture(scope="module")
def rows(decoder, kit):
    """The rows that a prefill reads, and the sequences with their targets."""
    prompts = kit.random_prompts(0, len(PROMPT_LENGTHS), PROMPT_LENGTHS)
    prompts = [prompt for prompt in prompts for _ in range(SCHEDULES)]
    padded = np.zeros((NUM_ROWS, BUCKET), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(NUM_ROWS))
    limits = np.full(NUM_ROWS, NUM_NEW, np.int32)
    arguments = Rows(padded, LENGTHS, limits, keys)
    spec = DecodeSpec(CAPACITY, kit.NEVER, kit.PAD, SAMPLING, True)
    static = (decoder.model, decoder.params, PlainDrafter(), spec)
    state = jax.jit(lambda rows: loop.decode(*static, loop.prefill(*static, rows)))(arguments)
    tokens = np.asarray(state.tokens)
    targets = [tokens[row, n : n + NUM_NEW] for row, n in enumerate(LENGTHS)]
    assert all(len(set(target.tolist())) > NUM_NEW // 2 for target in targets)  # not a loop
    return arguments, kit.script_of(prompts, targets, CAPACITY)


@pytest.fixture(scope="module")
def streaming(request, model, params, decoder, kit):
    """(model, params, decoder) of a kind of stream."""
    if request.param == "embedding":
        return model, params, decoder
    rng = np.random.default_rng(0)
    width = model.config.embed_dim
    if request.param == "detached":
        model, params = adapted(model, params, rng)
        merged = model.clone(adaptation=merged_adaptation(model.adaptation))
        return model, params, kit.make_decoder(merged, merge_lora(params, model.adaptation))
    if request.param in ("parents", "roots"):
        streams = dataclasses.replace(model.streams, parent_rank=4)
        shapes = {"down": (4, width), "query": (4, width), "gate": (3, 4), "up": (width, 4)}
        shapes = {f"parent_{name}": shape for name, shape in shapes.items()}
        if request.param == "roots":
            streams = dataclasses.replace(streams, root_rank=4)
            shapes |= {"stream_root_down": (4, width), "stream_root_up": (width, 4)}
        params = params | {
            name: jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32)
            for name, shape in shapes.items()
        }
        model = model.clone(streams=streams)
        return model, params, kit.make_decoder(model, params)
    streams = dataclasses.replace(
        model.streams, variation="rotation", rotation_length=1, init_rank=2
    )
    model = model.clone(streams=streams)
    params = {key: leaf for key, leaf in params.items() if key != "stream_embedding"} | {
        "stream_init_down": jnp.asarray(rng.standard_normal((2, width)) / 6, jnp.float32),
        "stream_init_up": jnp.asarray(rng.standard_normal((width, 2)), jnp.float32),
    }
    return model, params, kit.make_decoder(model, params)


def adapted(model, params, rng):
    """A detached model whose main rows are those of the given one: base + adapter = its weights."""
    adaptation = AdaptationConfig("detached", rank=2, alpha=6.0)
    model = model.clone(adaptation=adaptation)
    leaves = flatten(params)
    for name, leaf in flatten(abstract_params(model)).items():
        if name not in leaves:
            leaves[name] = jnp.asarray(rng.standard_normal(leaf.shape) / 8, jnp.float32)
    for name in [name for name in leaves if name.endswith("/lora_a")]:
        home = name.removesuffix("lora_a")
        update = np.einsum("lor,lri->loi", leaves[home + "lora_b"], leaves[name])
        leaves[home + "weight"] = leaves[home + "weight"] - 3.0 * update
    return model, unflatten(leaves)


@pytest.fixture(scope="module")
def right():
    """[B, CAPACITY + 1]: how many drafted tokens are right, by row and length."""
    mixture = np.random.default_rng(1).integers(0, 4, (NUM_ROWS, CAPACITY + 1))
    schedule = (np.arange(NUM_ROWS) % SCHEDULES)[:, None]
    return np.where(schedule == 2, mixture, schedule).astype(np.int32)


@pytest.fixture(scope="module")
def whole(streaming):
    """whole(tokens, anchors) -> `ModelOutput` of sequences in one call, as the loss runs them."""
    model, params, _ = streaming

    @jax.jit
    def run(tokens, anchors):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        kwargs = {"anchors": anchors, "num_streams": NUM_STREAMS}
        return model.apply({"params": params}, tokens, positions, Causal(), **kwargs)

    return run


@pytest.fixture(scope="module")
def log_probs_of(streaming):
    """Hidden states [..., D] -> log-probabilities [..., V]."""
    model, params, _ = streaming
    logits = jax.jit(lambda hidden: model.apply({"params": params}, hidden, method="logits"))
    return lambda hidden: jax.nn.log_softmax(logits(hidden))


@pytest.fixture(scope="module")
def forward(whole, log_probs_of):
    """Log-probabilities [B, A, 1 + J, V] of whole sequences at anchors, as the loss has them."""

    def run(tokens, anchors):
        output = whole(tokens, anchors)
        main = jnp.take_along_axis(output.hidden, anchors[:, :, None], axis=1)[:, :, None]
        return log_probs_of(jnp.concatenate([main, output.stream_hidden], axis=2))

    return run


@pytest.fixture(scope="module")
def trained(rows, forward):
    """Teacher-forced log-probabilities at every anchor of training."""
    script = jnp.asarray(rows[1])
    batch = oracles.batch_of(script, LENGTHS, np.asarray(LENGTHS) + NUM_NEW)
    anchors, targets, weights = anchor_targets(batch, NUM_NEW, tuple(range(1 + NUM_STREAMS)))
    anchors, targets, weights = (np.asarray(x) for x in (anchors, targets, weights))
    for row, length in enumerate(LENGTHS):  # what is predicted at an anchor, by hand
        for anchor in range(NUM_NEW):
            assert anchors[row, anchor] == length - 1 + anchor
            for stream in range(1 + NUM_STREAMS):
                position = length + anchor + stream
                counts = position < length + NUM_NEW
                assert weights[row, anchor, stream] == counts
                if counts:
                    assert targets[row, anchor, stream] == script[row, position]
    return np.asarray(forward(script, anchors))


@pytest.fixture(scope="module")
def walk(request, streaming, rows, right, kit):
    """States before each pass and at the end, and the drafter that saw all of them."""
    _, _, decoder = streaming
    arguments, script = rows
    spec = DecodeSpec(CAPACITY, kit.NEVER, kit.PAD, SAMPLING, request.param == "deferred")
    drafter = kit.ScriptDrafter(
        script, PARENTS, OFFSETS, right=right, record=[], num_streams=NUM_STREAMS
    )
    static = (decoder.model, decoder.params, drafter, spec)
    step = jax.jit(functools.partial(loop.decode_step, *static))
    states = [jax.jit(functools.partial(loop.prefill, *static))(arguments)]
    while bool(loop.keep_going(states[-1])):
        states.append(step(states[-1]))
    jax.effects_barrier()
    return states, drafter


def test_target_is_walked_with_the_scheduled_acceptance(walk, rows, right):
    states, _ = walk
    script = rows[1]
    tokens = np.asarray(states[-1].tokens)
    for row, length in enumerate(LENGTHS):
        end = length + NUM_NEW
        np.testing.assert_array_equal(tokens[row, :end], script[row, :end])
        at, calls = length + 1, 0
        while at < end:
            at, calls = at + right[row, at] + 1, calls + 1
        assert int(states[-1].calls[row]) == calls


@pytest.fixture(scope="module")
def told(streaming, rows, whole, log_probs_of):
    """As `trained`, [B, A, J, V] of streams that know the true token before theirs; or None."""
    model, params, _ = streaming
    if not model.streams.knows_parents:
        return None
    script = jnp.asarray(rows[1])
    anchors = jnp.asarray(LENGTHS)[:, None] - 1 + jnp.arange(NUM_NEW)
    before = anchors[:, :, None] + 1 + jnp.arange(NUM_STREAMS)  # stream j follows the token t + j
    place = jnp.minimum(before, CAPACITY - 1).reshape(NUM_ROWS, -1)
    parents = jnp.take_along_axis(script, place, axis=1).reshape(before.shape)
    hidden = whole(script, anchors).stream_hidden
    hidden = with_parents(make_correction(params), hidden, parents)
    return np.asarray(log_probs_of(hidden)), np.asarray(parents)


def assert_table(candidates, streams, told):
    """What one row of candidates says of every token, by stream, and after the true parents."""
    tokens, scores = candidates
    vocab_size = streams.shape[-1]
    np.testing.assert_array_equal(np.sort(tokens), np.tile(np.arange(vocab_size), (len(tokens), 1)))
    for stream, ids in enumerate(tokens):
        expected, parent = streams[stream], 0
        if told is not None:
            expected = told[0][stream]
            if stream:
                parent = int(np.flatnonzero(tokens[stream - 1] == told[1][stream])[0])
        np.testing.assert_allclose(
            scores[stream, parent], expected[ids], atol=TOLERANCE, rtol=TOLERANCE
        )


def test_streams_that_reach_the_drafter(walk, trained, told):
    states, drafter = walk
    assert len(drafter.record) == len(states)
    seen = {schedule: set() for schedule in range(SCHEDULES)}
    for state, (candidates, length) in zip(states, drafter.record, strict=True):
        np.testing.assert_array_equal(length, state.length)
        for row in np.flatnonzero(~np.asarray(state.done)):
            anchor = int(length[row] - 1 - LENGTHS[row])
            found = candidates.tokens[row], candidates.scores[row]
            own = told and tuple(values[row, anchor] for values in told)
            assert_table(found, trained[row, anchor, 1:], own)
            seen[row % SCHEDULES].add((int(row), anchor))
    for schedule, step in ((0, 1), (1, 2), (3, 4)):
        anchors = range(0, NUM_NEW - 1, step)
        rows_of = range(schedule, NUM_ROWS, SCHEDULES)
        assert seen[schedule] == {(row, anchor) for row in rows_of for anchor in anchors}


@pytest.fixture(scope="module")
def node_log_probs(streaming):
    """Log-probabilities [B, M, 1 + J, V] at every node of a state's tree, and deferred streams.

    The mask and the depths are the test's own. Roots [B, M] follow the nodes; streams that start
    from them cannot run beside the nodes.
    """
    _, _, decoder = streaming
    model, params = decoder.model, {"params": decoder.params}
    beside_nodes = 0 if model.streams.knows_root else NUM_STREAMS

    @jax.jit
    def run(tokens, cache, length, roots):
        shape, cached = tokens.shape, length - 1
        positions = cached[:, None] + jnp.array(DEPTHS)
        mask = jnp.broadcast_to(NODE_MASK, (*shape, NUM_NODES))
        nodes = jnp.broadcast_to(jnp.arange(NUM_NODES), shape)
        output = model.apply(
            params, tokens, positions, mask, cache, cached, anchors=nodes, num_streams=beside_nodes
        )
        later = model.apply(
            params,
            Anchors(output.trunk_hidden, positions, mask, roots),
            output.block,
            positions,
            cache,
            cached,
            NUM_STREAMS,
            method="speculate",
        )

        def log_probs(hidden):
            return jax.nn.log_softmax(model.apply(params, hidden, method="logits"))

        main, later = log_probs(output.hidden)[:, :, None], log_probs(later)
        streams = log_probs(output.stream_hidden) if beside_nodes else later
        return jnp.concatenate([main, streams], axis=2), later

    def log_probs_at_nodes(state, cache, roots=None):
        tokens = state.draft.tokens
        roots = jnp.zeros_like(tokens) if roots is None else roots
        return [np.asarray(x) for x in run(tokens, cache, state.length, roots)]

    return log_probs_at_nodes


def test_every_node_on_the_true_path(walk, node_log_probs, trained, right, rows):
    states, _ = walk
    script = np.pad(rows[1], [(0, 0), (0, NUM_NODES)])
    main_seen, stream_seen = set(), set()
    for state in states[:-1]:
        following = np.asarray(state.length)[:, None] + np.array(DEPTHS)
        roots = np.take_along_axis(script, following, axis=1)
        beside, later = node_log_probs(state, state.cache, jnp.asarray(roots))
        for row in np.flatnonzero(~np.asarray(state.done)):
            length = int(state.length[row])
            for node in (0, 2, 4, 6)[: 1 + right[row, length]]:
                anchor = length - LENGTHS[row] + DEPTHS[node]
                if anchor >= NUM_NEW:  # after the target
                    continue
                expected = trained[row, anchor]
                np.testing.assert_allclose(
                    beside[row, node], expected, atol=TOLERANCE, rtol=TOLERANCE
                )
                np.testing.assert_allclose(
                    later[row, node], expected[1:], atol=TOLERANCE, rtol=TOLERANCE
                )
                main_seen.add((int(row), int(anchor)))
                stream_seen.add((int(row), int(anchor), node > 0))
    # All targets but the first, which the prefill draws; most of them after draft nodes too.
    assert main_seen == {(row, a) for row in range(NUM_ROWS) for a in range(1, NUM_NEW)}
    assert sum(after for *_, after in stream_seen) > NUM_ROWS * NUM_NEW // 3


def test_every_branch_equals_its_path_as_a_plain_sequence(walk, node_log_probs, forward):
    """Wrong branches, cousins and a token that stands in two contexts: each alone, no cache."""
    states, _ = walk
    for state in states[:-1:3]:
        beside, later = node_log_probs(state, state.cache)
        tokens, drafted = np.asarray(state.tokens), np.asarray(state.draft.tokens)
        sequences, anchors, where = [], [], []
        for row in range(NUM_ROWS):
            length = int(state.length[row])
            for node in range(1, NUM_NODES - 1):
                sequence = np.zeros(CAPACITY + 1 + NUM_STREAMS, np.int32)
                sequence[:length] = tokens[row, :length]
                for at in PATHS[node][1:]:
                    sequence[length - 1 + DEPTHS[at]] = drafted[row, at]
                sequences.append(sequence)
                anchors.append([length - 1 + DEPTHS[node]])
                where.append((row, node))
        expected = np.asarray(forward(np.array(sequences), np.array(anchors)))[:, 0]
        row, node = np.array(where).T
        np.testing.assert_allclose(beside[row, node], expected, atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(
            later[row, node], expected[:, 1:], atol=TOLERANCE, rtol=TOLERANCE
        )
        same = drafted[:, 3] == drafted[:, 4]  # one token under two parents
        assert same.any()
        gap = np.abs(beside[same, 3] - beside[same, 4]).max(axis=(1, 2))
        assert np.median(gap) > 100 * TOLERANCE


def test_slots_after_the_cached_prefix_are_never_read(walk, node_log_probs):
    state = walk[0][2]

    def poison(leaf):
        after = jnp.arange(CAPACITY) >= (state.length - 1)[:, None]
        return jnp.where(after[:, None, :, None], 1e4, leaf)

    poisoned = KVCache(*jax.tree.map(poison, (state.cache.trunk, state.cache.stream_layers)))
    clean, dirty = node_log_probs(state, state.cache), node_log_probs(state, poisoned)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
