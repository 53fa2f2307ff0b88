"""Whatever is drafted, and however it is run, the tokens are those of plain decoding.

    drafter    streams, Medusa heads, prompt lookup, draft model, streams merged with lookup
    tree       best first, static, explicit; whole, or pruned by the early exit to a number of
               nodes or by a threshold, or without unlikely nodes and passes no wider than needed
    streams    deferred, or beside every node of the pass
    tokens     greedy or sampled: at one position of one row the noise is always the same
    batch      rows alone, or ragged: prompts of 1 to 8 tokens, other limits and ends, limit 0

Plain decoding itself is compared with a loop of whole NumPy passes. All rows have two sets of
weights, random ones and some that were trained to count, of which the drafts mostly hold. The
matrix is a stress test, of rows alone in half of its cells; a diagonal of it runs by default.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import AdaptationConfig
from ssjax.decoding import decoder as decoder_module
from ssjax.decoding import loop
from ssjax.decoding.decoder import completions_of
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.decoding.drafters import (
    BestFirstDrafter,
    MergedDrafter,
    PlainDrafter,
    PromptLookup,
    StaticDrafter,
)
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.decoding.tree import StaticTree
from ssjax.models.lora import merge_lora, merged_adaptation
from ssjax.models.parameters import unstack_layers

VOCAB, BUCKET, NEW, ROWS, ALONE = 16, 8, 12, 200, 5
CAPACITY = BUCKET + NEW
EOS = (14, 15)
UNDRAFTED = (3, 10)  # tokens that streams cannot draft, and that are drawn all the same
SIZES = {
    "vocab_size": VOCAB,
    "embed_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_dim": 32,
    "num_stream_layers": 1,
    "parent_rank": 4,
    "root_rank": 4,  # where streams are deferred, see `model_of`
}
PLAIN_STREAMS = {"parent_rank": 0, "root_rank": 0}
SAMPLING = {"greedy": Sampling(), "sampled": Sampling(temperature=1.5, top_k=9, top_p=0.95)}
LIMITS = np.array([NEW, 4, 0, NEW, 7, 1, NEW, NEW] * (ROWS // 8), np.int32)


def make_prompts():
    """Half of them twice what they were, so that a lookup finds something; some begin with pad."""
    prompts = oracles.ragged_prompts(3, ROWS, longest=4, vocab_size=VOCAB)
    prompts = [p * (1 + row % 2) for row, p in enumerate(prompts)]
    lengths = {len(prompt) for prompt in prompts}
    assert lengths == {1, 2, 3, 4, 6, 8} and any(prompt[0] == 0 for prompt in prompts)
    return prompts


PROMPTS = make_prompts()
PADDED, LENGTHS = oracles.pad(PROMPTS, BUCKET)

# The drafters.

BRANCHING = StaticTree.from_branching((2, 2, 1))
EXPLICIT = StaticTree((-1, 0, 0, 1, 1, 2, 3), (0, 0, 1, 0, 2, 0, 0))
LOOKUP = PromptLookup(num_draft_nodes=4, longest_match=2)
DRAFT_MODEL = oracles.make_model(scan=False, num_streams=0, **SIZES)


def make_drafters():
    """By name; those whose names begin with streams or merged run streams."""
    drafters = {"lookup": LOOKUP, "draft_model": ModelDrafter(DRAFT_MODEL, 3)}
    sources = {"streams": {"num_streams": 3}, "medusa": {"num_streams": 0, "num_heads": 3}}
    for source, needs in sources.items():
        drafters[f"{source}-best_first"] = BestFirstDrafter(6, **needs)
        drafters[f"{source}-static"] = StaticDrafter(BRANCHING, **needs)
        drafters[f"{source}-explicit"] = StaticDrafter(EXPLICIT, **needs)
    for tree in ("best_first", "static", "explicit"):
        drafters[f"merged-{tree}"] = MergedDrafter(drafters[f"streams-{tree}"], LOOKUP)
    pruned = {
        f"{name}-pruned": dataclasses.replace(drafter, kept_nodes=3 if name != "draft_model" else 2)
        for name, drafter in drafters.items()
        if name != "lookup"
    }
    under_threshold = {
        f"{name}-threshold": dataclasses.replace(drafters[name], exit_threshold=0.05)
        for name in ("streams-best_first", "medusa-static", "merged-explicit")
    }
    # Passes of several widths, by what the drafts of all rows need.
    likely = {
        f"{name}-likely": dataclasses.replace(
            drafters[name], temperatures=(0.8, 1.0, 1.5), min_node_chance=0.15
        )
        for name in ("streams-best_first", "streams-explicit", "medusa-best_first")
    }
    return drafters | pruned | under_threshold | likely


DRAFTERS = make_drafters()
DIAGONAL = {
    ("streams-best_first", "deferred", "greedy", "ragged"),
    ("streams-best_first", "beside", "sampled", "alone"),
    ("streams-static", "beside", "greedy", "ragged"),
    ("streams-explicit", "deferred", "sampled", "ragged"),
    ("streams-best_first-pruned", "deferred", "sampled", "ragged"),
    ("streams-static-pruned", "beside", "greedy", "ragged"),
    ("streams-best_first-threshold", "beside", "sampled", "ragged"),
    ("streams-best_first-likely", "deferred", "sampled", "alone"),
    ("lookup", "deferred", "greedy", "ragged"),
    ("lookup", "deferred", "sampled", "alone"),
    ("draft_model", "deferred", "greedy", "ragged"),
    ("draft_model", "deferred", "sampled", "alone"),
    ("medusa-best_first", "deferred", "sampled", "alone"),
    ("medusa-static", "deferred", "greedy", "ragged"),
    ("merged-best_first", "beside", "sampled", "ragged"),
    ("merged-explicit-pruned", "deferred", "greedy", "ragged"),
}


def matrix():
    """The cells; those off the diagonal are stress tests.

    Of rows alone, a program each again, greedy ones beside every node and sampled ones deferred:
    every drafter is met alone, in both orders if it has them, and every form ragged.
    """
    for name, tokens, batch in itertools.product(DRAFTERS, SAMPLING, ("alone", "ragged")):
        for order in ("deferred", "beside") if DRAFTERS[name].num_streams else ("deferred",):
            cell = (name, order, tokens, batch)
            repeated = batch == "alone" and (order == "beside") != (tokens == "greedy")
            if repeated and cell not in DIAGONAL:
                continue
            marks = () if cell in DIAGONAL else pytest.mark.stress
            yield pytest.param(*cell, marks=marks, id="-".join(cell))


def test_the_diagonal_meets_every_drafter_tree_and_form():
    assert {cell.values for cell in matrix()} >= DIAGONAL
    names = {name for name, *_ in DIAGONAL}
    assert {name.split("-")[0] for name in names} == {name.split("-")[0] for name in DRAFTERS}
    parts = {part for name in DRAFTERS for part in name.split("-")}
    assert {part for name in names for part in name.split("-")} == parts
    for forms in zip(*[cell[1:] for cell in DIAGONAL], strict=True):
        assert len(set(forms)) == 2


# Running them.


@dataclasses.dataclass
class Weights:
    """Parameters in the forms that decoding and the oracle take."""

    model: object  # unrolled, as decoders on CPUs have it
    params: object
    draft_params: object
    logits_after: object  # tokens -> [V], NumPy without a cache

    @classmethod
    def of(cls, model, params, **oracle_options):
        noisy = jax.tree.map(
            lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape) * x.std(), params
        )
        names = ("embedder", "trunk", "stream_layers", "final_norm")
        decoder = oracles.make_decoder(model, params)
        return cls(
            decoder.model,
            decoder.params,
            unstack_layers({name: noisy[name] for name in names if name in noisy}),
            lambda tokens: oracles.forward(params, model.config, tokens)[0][-1],
        )


@pytest.fixture(scope="module")
def weights():
    """Of one model with streams, an early exit and Medusa heads: random, and trained to count."""
    few = tuple(token for token in range(VOCAB) if token not in UNDRAFTED)
    drafted = {"draft_vocab_size": len(few), "draft_tokens": few}
    model = oracles.make_model(exit_rank=2, medusa_heads=3, **drafted, **SIZES)
    params = oracles.random_params(model, seed=0)
    # Trained without root and parent, which are silent there: drafts of every length.
    trained = params | oracles.train_to_count(150, **(SIZES | PLAIN_STREAMS))[1]
    # Head k knows the token k + 1 after the next: the same logits, counted on.
    heads = [jnp.roll(trained["embedder"], 1 + k, axis=0) for k in range(3)]
    silent = ("medusa_weight", "medusa_bias", "exit_up", "parent_up", "stream_root_up")
    nothing = {name: jnp.zeros_like(trained[name]) for name in silent}
    trained |= {"medusa_head": jnp.stack(heads), **nothing}
    return {"random": Weights.of(model, params), "trained": Weights.of(model, trained)}


def model_of(weights, spec):
    """Streams beside every node cannot know the root."""
    model = weights.model
    if spec.deferred:
        return model
    return model.clone(streams=dataclasses.replace(model.streams, root_rank=0))


def start(weights, drafter, spec, rows=slice(None), padded=PADDED):
    """The state after the prefill of some rows; each keeps its own key."""
    numbers = np.arange(ROWS, dtype=np.int32)
    keys = decoder_module.row_keys(np.full(ROWS, 5, np.int32), numbers)
    chosen = Rows(padded[rows], LENGTHS[rows], LIMITS[rows], keys[rows])
    return decoder_module.prefill_program(
        model_of(weights, spec), weights.params, drafter, spec, chosen, weights.draft_params
    )


def finish(weights, drafter, spec, state):
    return decoder_module.decode_program(
        model_of(weights, spec), weights.params, drafter, spec, state, weights.draft_params
    )


def make_spec(tokens="greedy", order="deferred", eos_ids=EOS):
    return DecodeSpec(CAPACITY, eos_ids, 0, SAMPLING[tokens], order == "deferred")


def run(weights, drafter, spec, batch="ragged"):
    """Completions, and [cache leaves] of the rows, decoded together or one by one."""
    groups = [slice(None)] if batch == "ragged" else [slice(i, i + 1) for i in range(ALONE)]
    completions, caches = [], []
    for rows in groups:
        state = finish(weights, drafter, spec, start(weights, drafter, spec, rows))
        completions += completions_of(state, LENGTHS[rows], spec.eos_ids, drafter.max_depth)
        caches.append(jax.tree.map(np.asarray, jax.tree.leaves(state.cache)))
    return completions, [np.concatenate(leaves) for leaves in zip(*caches, strict=True)]


@pytest.fixture(scope="module")
def plain(weights):
    """plain(weights, tokens) -> completions and cache of plain decoding, ragged."""
    return functools.cache(
        lambda name, tokens: run(weights[name], PlainDrafter(), make_spec(tokens))
    )


def by_hand(weights, tokens, row, eos_ids=EOS):
    key = jax.random.fold_in(jax.random.key(5), row)
    return oracles.continued(
        weights.logits_after, PROMPTS[row], LIMITS[row], eos_ids, SAMPLING[tokens], key
    )


def assert_same_cache(found, expected):
    """Nothing but what plain decoding wrote: near in what is held, exactly zero after it."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
        np.testing.assert_array_equal(ours == 0, theirs == 0)


def assert_lossless(found, expected):
    """Tokens and cache of two `run`s; the first may have fewer rows. Returns its runs."""
    (completions, cache), (truth, true_cache) = found, expected
    assert oracles.tokens_of(completions) == oracles.tokens_of(truth[: len(completions)])
    assert_same_cache(cache, [leaf[: len(completions)] for leaf in true_cache])
    for completion in completions:
        assert sum(completion.runs) == len(completion.tokens)
        assert len(completion.runs) == completion.calls + 1
        # Every pass ends with a bonus token, but the last one may be cut before it.
        assert list(completion.accepted) == sorted(completion.accepted, reverse=True)
        by_passes = sum(completion.runs[1:])
        assert 0 <= completion.calls - (by_passes - sum(completion.accepted)) <= 1
    return {run for completion in completions for run in completion.runs[1:-1]}


# The matrix.


@pytest.mark.parametrize("batch", ["alone", "ragged"])
@pytest.mark.parametrize("tokens", SAMPLING)
def test_plain_equals_a_numpy_loop_without_cache(weights, tokens, batch):
    for some in weights.values():
        completions, _ = run(some, PlainDrafter(), make_spec(tokens), batch)
        finishes = {(c.finish, len(c.tokens)) for c in completions}
        assert batch == "alone" or finishes >= {("length", 0), ("length", NEW), ("eos", 2)}
        for row, completion in enumerate(completions[:24]):
            assert completion.tokens == by_hand(some, tokens, row)
            assert completion.calls == max(len(completion.tokens) - 1, 0)


@pytest.mark.parametrize(("name", "order", "tokens", "batch"), list(matrix()))
def test_tokens_are_those_of_plain_decoding(weights, plain, name, order, tokens, batch):
    runs, spec = set(), make_spec(tokens, order)
    for kind, some in weights.items():
        found = run(some, DRAFTERS[name], spec, batch)
        runs |= assert_lossless(found, plain(kind, tokens))
    # None, some and all of a path accepted, else the test proves little.
    whole = not name.endswith(("pruned", "threshold", "likely"))
    deepest = 4 if tokens == "greedy" and whole else 3
    assert runs >= ({1, 2} if batch == "alone" else set(range(1, 1 + deepest)))


@pytest.mark.parametrize(("name", "order", "tokens", "batch"), sorted(DIAGONAL))
def test_a_drafter_that_is_not_finite_changes_no_token(weights, plain, name, order, tokens, batch):
    """Streams, the early exit, Medusa heads and draft model of NaN, or of inf."""
    some = weights["trained"]
    own = ("stream_embedding", "parent_up", "exit_up", "medusa_weight", "medusa_head")
    for bad in (jnp.nan, jnp.inf):
        params = {k: jnp.full_like(v, bad) if k in own else v for k, v in some.params.items()}
        draft = jax.tree.map(lambda x, bad=bad: jnp.full_like(x, bad), some.draft_params)
        spoilt = dataclasses.replace(some, params=params, draft_params=draft)
        found = run(spoilt, DRAFTERS[name], make_spec(tokens, order), batch)
        assert_lossless(found, plain("trained", tokens))


@pytest.fixture(scope="module")
def fine_tuned():
    """Of the detached mode, folded as for decoding: random streams over random adapters."""
    adaptation = AdaptationConfig("detached", rank=2, alpha=4.0)
    model = oracles.make_model(exit_rank=2, adaptation=adaptation, **SIZES)
    params = merge_lora(oracles.random_params(model, seed=0), adaptation)
    return Weights.of(model.clone(adaptation=merged_adaptation(adaptation)), params)


@pytest.mark.parametrize(
    ("name", "order", "tokens", "batch"),
    [
        cell
        if cell[1:3] == ("deferred", "sampled")
        else pytest.param(*cell, marks=pytest.mark.stress)
        for cell in sorted(DIAGONAL)
        if cell[0].startswith(("streams", "merged"))
    ],
)
def test_tokens_of_a_detached_fine_tune(fine_tuned, name, order, tokens, batch):
    spec = make_spec(tokens, order)
    expected = run(fine_tuned, PlainDrafter(), spec)
    for row in range(ALONE):
        assert expected[0][row].tokens == by_hand(fine_tuned, tokens, row)
    runs = assert_lossless(run(fine_tuned, DRAFTERS[name], spec, batch), expected)
    assert runs >= {1, 2}


EDGES = {
    "one stream of three": BestFirstDrafter(2, 1),
    "two heads of three": BestFirstDrafter(4, 0, num_heads=2),
    "more nodes than a level holds": BestFirstDrafter(40, 3),
    "the root alone": StaticDrafter(StaticTree.from_branching(()), 1),
    "width 1": StaticDrafter(StaticTree.from_branching((1, 1, 1)), 3),
    "wider than the vocabulary": StaticDrafter(StaticTree.from_branching((VOCAB + 2, 2)), 2),
    "all pruned but one": BestFirstDrafter(6, 3, kept_nodes=1),
}


@pytest.mark.parametrize("name", EDGES)
def test_sizes_at_the_edge(weights, plain, name):
    drafter = EDGES[name]
    spec = make_spec(order="beside" if name == "width 1" else "deferred")
    runs = set()
    for kind, some in weights.items():
        runs |= assert_lossless(run(some, drafter, spec), plain(kind, "greedy"))
    longest = 1 + (drafter.kept_nodes or drafter.max_depth)
    assert runs == set(range(1, 1 + longest))


# What is kept between passes.

KINDS = {  # those whose programs the diagonal has compiled
    "plain": PlainDrafter(),
    **{
        name: DRAFTERS[name]
        for name, *form in sorted(DIAGONAL)
        if form == ["deferred", "greedy", "ragged"]
    },
}


def assert_equal_states(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


passes_program = jax.jit(loop.decode_passes, static_argnums=(0, 2, 3))


@pytest.mark.parametrize("name", KINDS)
def test_pieces_equal_one_long_loop(weights, name):
    """Any number of passes at a time; none once all rows are done."""
    some, drafter, spec = weights["trained"], KINDS[name], make_spec()
    whole = finish(some, drafter, spec, start(some, drafter, spec))
    for sizes in ((1, 2, 1, 50), (0, 3, 50, 50)):
        state = start(some, drafter, spec)
        seen = [np.asarray(state.length)]
        for size in sizes:
            state = passes_program(
                some.model, some.params, drafter, spec, state, size, some.draft_params
            )
            seen.append(np.asarray(state.length))
        assert len({tuple(length.tolist()) for length in seen}) >= 3
        assert_equal_states(state, whole)


@pytest.mark.parametrize("name", KINDS)
def test_what_pads_a_prompt_does_not_matter(weights, name):
    some, drafter, spec = weights["random"], KINDS[name], make_spec()
    inside = np.arange(BUCKET) < LENGTHS[:, None]
    other = np.random.default_rng(1).integers(0, VOCAB, PADDED.shape).astype(np.int32)
    filled = np.where(inside, PADDED, other)
    assert (filled != PADDED).any()
    found = start(some, drafter, spec, padded=filled)
    assert_equal_states(found, start(some, drafter, spec))


@pytest.mark.parametrize("name", KINDS)
def test_what_lies_after_the_cached_prefix_is_never_read(weights, name):
    """Keys of NaN and values of 1e30, in the cache of a draft model too."""
    some, drafter, spec = weights["random"], KINDS[name], make_spec()

    def poison(cache, length):
        after = (jnp.arange(CAPACITY) >= length[:, None])[:, None, :, None]
        return jax.tree.map_with_path(
            lambda path, x: jnp.where(after, jnp.nan if path[-1].name == "keys" else 1e30, x),
            cache,
        )

    def held(cache, length):
        after = (jnp.arange(CAPACITY) >= length[:, None])[:, None, :, None]
        return jax.tree.map(lambda x: jnp.where(after, 0, x), cache)

    clean = finish(some, drafter, spec, start(some, drafter, spec))
    state = start(some, drafter, spec)
    memory = state.memory
    if name == "draft_model":
        memory = memory.replace(cache=poison(memory.cache, memory.length))
    cached = jnp.where(LIMITS > 0, state.length - 1, state.length)
    state = state.replace(cache=poison(state.cache, cached), memory=memory)
    dirty = finish(some, drafter, spec, state)
    assert np.isnan(jax.tree.leaves(dirty.cache)[0]).any()
    for field in ("tokens", "born", "length", "done", "calls", "drafted"):
        np.testing.assert_array_equal(getattr(dirty, field), getattr(clean, field), field)
    caches = [
        held(state.cache, jnp.where(LIMITS > 0, state.length - 1, state.length))
        for state in (dirty, clean)
    ]
    assert_equal_states(*caches)


# Other models, in which something else could go wrong.


def windowed(params, config):
    """Each token sees itself and the window - 1 before it."""

    def logits_after(tokens):
        places = np.arange(len(tokens))
        distance = places[:, None] - places
        visible = (distance >= 0) & (distance < config.window)
        return oracles.forward(params, config, tokens, visible=visible)[0][-1]

    return logits_after


def tied(params, config):
    """Far above the soft cap all logits are equal: all that are positive share the first place."""
    return lambda tokens: oracles.forward(params, config, tokens)[0][-1] > 0


def of_base(params, config):
    """Without the adapters."""
    return lambda tokens: oracles.forward(params, config, tokens)[0][-1]


MODELS = {
    "window": ({"window": 4, "local_layers": (0, 1)}, windowed),
    "equal logits": ({"logit_softcap": 1e-4}, tied),
    "gated adapters": ({"adaptation": AdaptationConfig("lossless", rank=2, alpha=6.0)}, of_base),
}


@pytest.fixture(scope="module")
def other_model():
    """other_model(name) -> weights, completions and cache of plain decoding."""

    @functools.cache
    def make(name):
        changes, logits_after = MODELS[name]
        model = oracles.make_model(**SIZES, **changes)
        params = oracles.random_params(model, seed=4)
        some = Weights.of(model, params)
        some.logits_after = logits_after(params, model.config)
        return some, run(some, PlainDrafter(), make_spec())

    return make


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("window", "deferred"),
        ("equal logits", "deferred"),
        ("gated adapters", "deferred"),
        ("gated adapters", "beside"),
        pytest.param("window", "beside", marks=pytest.mark.stress),
        pytest.param("equal logits", "beside", marks=pytest.mark.stress),
    ],
)
def test_across_a_window_with_equal_logits_with_adapters_of_streams(other_model, name, order):
    """Rows lose sight of their first tokens; the lowest of equal ids wins; main rows and their
    keys and values are those of the base model."""
    some, plain = other_model(name)
    for row, completion in enumerate(plain[0][:24]):
        assert completion.tokens == by_hand(some, "greedy", row)
    found = run(some, BestFirstDrafter(6, 3), make_spec(order=order))
    assert assert_lossless(found, plain) >= {1, 2}
