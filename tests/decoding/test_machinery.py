"""The cache that passes leave behind, the compiled loop against a Python loop, compilations."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import StreamsConfig
from ssjax.decoding import decoder as decoder_module
from ssjax.decoding import loop
from ssjax.decoding.decoder import num_compilations
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.decoding.drafters import BestFirstDrafter, Memoryless, PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.decoding.tree import NO_PARENT
from ssjax.models.execution import Execution
from ssjax.models.parameters import unstack_layers
from ssjax.models.transformer import init_params

CACHE_TOLERANCE = 1e-5  # of the largest entry of a layer's keys or values
BATCH, BUCKET, NEW, CAPACITY = 4, 16, 24, 64
LENGTHS = np.array([1, 16, 5, 10], np.int32)
DRAFTER = BestFirstDrafter(6, 3)


def assert_close(ours, theirs):
    scale = float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=CACHE_TOLERANCE * scale, rtol=0)


@pytest.fixture(scope="module")
def rows(kit):
    padded = np.full((BATCH, BUCKET), kit.PAD, np.int32)
    for row, prompt in enumerate(kit.random_prompts(21, BATCH, LENGTHS.tolist())):
        padded[row, : len(prompt)] = prompt
    limits = np.array([NEW, 7, NEW, 15], np.int32)
    keys = jax.random.split(jax.random.key(0), BATCH)
    return jax.device_put(Rows(padded, LENGTHS, limits, keys))


@pytest.fixture(scope="module")
def static(decoder, rows, kit):
    """With a drafter of which, by row and length, 0 to 3 tokens in a branching tree are right."""
    spec = DecodeSpec(CAPACITY, kit.NEVER, kit.PAD, Sampling(), True)
    plain = (decoder.model, decoder.params, PlainDrafter(), spec)
    script = jax.jit(lambda rows: loop.decode(*plain, loop.prefill(*plain, rows)))(rows).tokens
    right = np.random.default_rng(0).integers(0, 4, (BATCH, CAPACITY + 1)).astype(np.int32)
    drafter = kit.ScriptDrafter(
        np.asarray(script), (-1, 0, 0, 1, 2, 2, 4), (0, 1, 0, 0, 0, 1, 0), right, num_streams=3
    )
    return decoder.model, decoder.params, drafter, spec


@pytest.fixture(scope="module")
def start(static, rows):
    """start() -> a fresh state after the prefill."""
    return lambda: decoder_module.prefill_program(*static, rows)


@pytest.fixture(scope="module")
def states(static, start):
    """After the prefill and after each pass of a Python loop."""
    step = jax.jit(functools.partial(loop.decode_step, *static))
    states = [start()]
    while bool(loop.keep_going(states[-1])):
        states.append(step(states[-1]))
    return states


def test_python_loop_equals_the_compiled_loop(states, static, start):
    compiled = decoder_module.decode_program(*static, start())
    for name in ("tokens", "born", "length", "limit", "done", "calls", "drafted"):
        np.testing.assert_array_equal(getattr(compiled, name), getattr(states[-1], name), name)
    assert int(compiled.calls.max()) == len(states) - 1
    for ours, theirs in zip(
        jax.tree.leaves(compiled.cache), jax.tree.leaves(states[-1].cache), strict=True
    ):
        assert_close(ours, theirs)


@dataclasses.dataclass(frozen=True, eq=False)
class Fewer(Memoryless):
    """Of another drafter's tree the first 1, 3 or all nodes, by the length of the row."""

    drafter: object
    narrow: tuple[int, ...]
    num_nodes: int = 7
    max_depth: int = 3
    num_streams: int = 3

    @property
    def widths(self):
        return (*self.narrow, self.num_nodes)

    def propose(self, context):
        tree, _ = self.drafter.propose(context)
        kept = jnp.array([1, 1, 3, 1, 1, self.num_nodes])[context.length % 6]
        parent = jnp.where(jnp.arange(self.num_nodes) < kept[:, None], tree.parent, NO_PARENT)
        return tree.replace(parent=parent, depth=jnp.where(parent < 0, 0, tree.depth)), ()


def test_a_pass_is_as_wide_as_the_drafts_of_its_rows(static, rows, monkeypatch):
    """Rows that are done count no more; what is found is what a pass of all rows finds."""
    model, params, script, spec = static
    whole = (model, params, Fewer(script, ()), spec)
    some = (model, params, Fewer(script, (1, 3)), spec)
    run, ran = loop._pass_of, []

    def recorded(forward, state, width):
        jax.debug.callback(lambda: ran.append(width))
        return run(forward, state, width)

    expected = decoder_module.decode_program(*whole, decoder_module.prefill_program(*whole, rows))
    monkeypatch.setattr(loop, "_pass_of", recorded)
    state, wanted = decoder_module.prefill_program(*some, rows), []
    step = jax.jit(functools.partial(loop.decode_step, *some))
    while bool(loop.keep_going(state)):
        parent = np.asarray(state.draft.parent)[~np.asarray(state.done)]
        wanted.append(next(w for w in (1, 3, 7) if (parent[:, w:] < 0).all()))
        state = step(state)
    jax.effects_barrier()
    assert ran == wanted and set(ran) == {1, 3, 7}
    for name in ("tokens", "born", "length", "done", "calls", "drafted"):
        np.testing.assert_array_equal(getattr(state, name), getattr(expected, name), name)
    for ours, theirs in zip(
        jax.tree.leaves(state.cache), jax.tree.leaves(expected.cache), strict=True
    ):
        assert_close(ours, theirs)


def test_cache_equals_a_prefill_over_the_same_tokens(states, static, rows):
    """Every layer, keys and values, every row, after every pass; zeros after that, exactly."""
    model, params, _, spec = static
    spec = DecodeSpec(CAPACITY, spec.eos_ids, spec.pad_id, Sampling(), True)
    read = jax.jit(functools.partial(loop.prefill, model, params, PlainDrafter(), spec))
    last = states[-1]
    in_pairs = last.drafted[:, 1:] & last.drafted[:, :-1] & (last.born[:, 1:] == last.born[:, :-1])
    assert in_pairs.any()  # paths of two draft nodes were written
    for state in states[:: max(1, len(states) // 5)] + [states[-1]]:
        cached = state.length - 1
        again = read(Rows(state.tokens, cached, jnp.zeros(BATCH, jnp.int32), rows.keys))
        after = np.arange(CAPACITY) >= np.asarray(cached)[:, None]
        pairs = zip(jax.tree.leaves(state.cache), jax.tree.leaves(again.cache), strict=True)
        for ours, fresh in pairs:
            assert_close(ours, fresh)
            assert not np.moveaxis(np.asarray(ours), 2, 1)[after].any()


def test_finished_rows_stay_frozen(states):
    frozen = 0
    for before, after in zip(states[:-1], states[1:], strict=True):
        for row in np.flatnonzero(np.asarray(before.done)):
            frozen += 1
            for name in ("tokens", "born", "length", "done", "calls", "drafted"):
                a, b = getattr(before, name)[row], getattr(after, name)[row]
                np.testing.assert_array_equal(a, b, name)
            for a, b in zip(
                jax.tree.leaves(before.cache), jax.tree.leaves(after.cache), strict=True
            ):
                np.testing.assert_array_equal(a[row], b[row])
    assert frozen > 3


def test_one_compilation_per_bucket(decoder, model, params, kit):
    prompts = kit.random_prompts(22, 11, (1, 5, 8, 3)) + kit.random_prompts(23, 6, (9, 16))
    prompts += kit.random_prompts(24, 2, (17, 33))  # longer than the largest bucket: 32 and 48
    two = kit.make_decoder(model, params, buckets=(16, 8))

    def generate(decoder, limit):
        drafter = BestFirstDrafter(2, 2)
        return oracles.generate(decoder, prompts, drafter, max_new_tokens=limit, batch_size=1)

    before = num_compilations()
    first = generate(two, 6)
    # Four prefills for 8, 16, 32 and 48 tokens; rows of all of them have 64 slots: one loop.
    assert num_compilations() - before == 4 + 1
    after = num_compilations()
    assert generate(two, 6) == first
    # Another limit of the same capacity, other weights: the same programs.
    generate(two, [1, 2] * 9 + [6])
    other = kit.make_decoder(model, kit.make_params(model, seed=1), buckets=(8, 16))
    assert generate(other, 6) != first
    assert num_compilations() == after


def test_prompts_are_read_by_one_program_however_long_outputs_may_be(model, params, kit):
    """A prefill and a loop at first; then each capacity is a small program and a loop."""
    decoder = kit.make_decoder(model, params, eos_ids=kit.NEVER, buckets=(16,))
    prompts = kit.random_prompts(25, 3, (16, 2, 9))
    sampled = Sampling(temperature=0.7, repetition_penalty=1.2)
    outputs = []
    for limits, programs in (([6] * 3, 2), ([60] * 3, 2), ([130] * 3, 2), ([7, 60, 0], 0)):
        before = num_compilations()
        found = oracles.generate(
            decoder, prompts, DRAFTER, max_new_tokens=limits, sampling=sampled, log_probs=True
        )
        assert num_compilations() - before == programs
        assert [len(completion.tokens) for completion in found] == limits
        outputs.append(found)
    *others, longest, _ = outputs
    for found in (*others, outputs[-1]):
        for short, long in zip(found, longest, strict=True):
            count = len(short.tokens)
            assert short.tokens == long.tokens[:count]
            assert short.runs[:-1] == long.runs[: len(short.runs) - 1]
            np.testing.assert_allclose(short.log_probs, long.log_probs[:count], atol=1e-4)


@pytest.mark.parametrize("limit", [0, 1, 2, 40])
def test_a_grown_state_is_that_of_a_prefill_with_more_slots(limit, static, rows, model, kit):
    """The cache of a draft model too, which has drafted before; a prompt fills its bucket."""
    draft = kit.make_model(model.config.vocab_size).clone(streams=StreamsConfig(0, 2), scan=False)
    draft_params = unstack_layers(init_params(draft.clone(scan=True), 4))
    static = (*static[:2], ModelDrafter(draft, 3), static[3])
    rows = rows.replace(max_new_tokens=jnp.full_like(rows.max_new_tokens, limit))
    expected = decoder_module.prefill_program(*static, rows, draft_params)
    few = dataclasses.replace(static[3], capacity=BUCKET + 2 + 3)
    state = decoder_module.prefill_program(*static[:3], few, rows, draft_params)
    grown = decoder_module.grow_program(state, rows, CAPACITY, kit.PAD)
    ours, theirs = (jax.tree.leaves_with_path(tree) for tree in (grown, expected))
    for (path, leaf), (_, other) in zip(ours, theirs, strict=True):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, other = map(jax.random.key_data, (leaf, other))
        assert leaf.shape == other.shape, jax.tree_util.keystr(path)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert_close(leaf, other)
        else:
            np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


def test_no_transfer_while_decoding(static, start):
    expected = decoder_module.decode_program(*static, start())
    state = start()
    with jax.transfer_guard("disallow"):
        state = decoder_module.decode_program(*static, state)
        state.length.block_until_ready()
    np.testing.assert_array_equal(state.tokens, expected.tokens)


def test_compiled_loop_never_asks_the_host(static, start, kit):
    def text(drafter, state):
        decode = jax.jit(loop.decode, static_argnums=(0, 2, 3))
        return decode.lower(static[0], static[1], drafter, static[3], state).compile().as_text()

    host = re.compile(r"infeed|outfeed|callback|send\(|recv\(", re.IGNORECASE)
    program = text(static[2], start())
    assert "while" in program and not host.search(program)
    # The search finds a host call where there is one.
    drafter = kit.HostDrafter(7, 3, {"tree": lambda row, sequence: []})
    assert host.search(text(drafter, start()))


def test_state_is_donated(static, start):
    state = start()
    leaves = jax.tree.leaves(state.cache) + [state.tokens]
    decoder_module.decode_program(*static, state)
    assert all(leaf.is_deleted() for leaf in leaves)


def test_bfloat16_decoder(kit, params):
    model = kit.make_model(dtype="bfloat16")
    decoder = kit.make_decoder(model, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(decoder.params)} == {jnp.dtype("bfloat16")}
    prompts, sampling = kit.random_prompts(25, 4, (1, 8, 16, 5)), Sampling(temperature=0.7)
    completions = oracles.generate(decoder, prompts, DRAFTER, max_new_tokens=NEW, sampling=sampling)
    for completion in completions:
        assert 0 < len(completion.tokens) <= NEW and sum(completion.runs) == len(completion.tokens)
        assert all(0 <= token < kit.VOCAB for token in completion.tokens)
    assert len({c.tokens for c in completions}) == 4


@pytest.mark.stress
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9)])
def test_the_program_for_tpu_draws_the_same_tokens(model, params, endless, kit, sampling):
    """Products of padded rows and a cache written in place; rows end at the capacity, too."""
    tpu = kit.make_decoder(model, params, eos_ids=kit.NEVER)
    tpu.model = model.clone(execution=Execution("tpu", few_rows_padded=True))
    tpu.params = params
    prompts = kit.random_prompts(27, 5, (1, 16, 9))
    asked = {"sampling": sampling, "max_new_tokens": 48}
    expected = oracles.generate(endless, prompts, PlainDrafter(), **asked)
    for drafter in (PlainDrafter(), DRAFTER):
        found = oracles.generate(tpu, prompts, drafter, **asked)
        assert oracles.tokens_of(found) == oracles.tokens_of(expected)
    assert sampling.temperature or max(len(c.runs) for c in found) < 48
