"""Penalties and bans: against NumPy and transformers, and under every kind of draft tree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import TableDrafter, generate, tokens_of, truth_table

from ssjax.decoding import forward, loop
from ssjax.decoding import state as state_module
from ssjax.decoding.drafters import BestFirstDrafter, Memoryless, PlainDrafter, StaticDrafter
from ssjax.decoding.sampling import Sampling, adjust, extend_history, start_history, warp
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.decoding.tree import DraftTree, StaticTree, root_only
from ssjax.errors import UserError

pytestmark = pytest.mark.stress  # a program for every option, drafter and temperature

VOCAB, NEW, ROWS, BUCKET = 13, 12, 24, 8
EOS = (2, 4)  # random weights soon end rows, unless they may not
SEED = 5
OPTIONS = {
    "repetition": {"repetition_penalty": 1.8},
    "presence": {"presence_penalty": 4.0},
    "banned": {"banned_tokens": (0, 5)},
    "min_new": {"min_new_tokens": 7},
    "min_p": {"min_p": 0.2},
    "all": {
        "repetition_penalty": 0.7,
        "presence_penalty": -1.5,
        "banned_tokens": (5, 4),
        "min_new_tokens": 5,
        "min_p": 0.1,
        "top_p": 0.97,
    },
}


@dataclasses.dataclass(frozen=True, eq=False)
class MixedDrafter(Memoryless):
    """Row i drafts with parts[i % len(parts)]; smaller trees get unused nodes."""

    parts: tuple
    num_streams: int = 3

    @property
    def num_nodes(self):
        return max(part.num_nodes for part in self.parts)

    @property
    def max_depth(self):
        return max(part.max_depth for part in self.parts)

    @property
    def num_candidates(self):
        return max(part.num_candidates for part in self.parts)

    def propose(self, context):
        padded = []
        for part in self.parts:
            tree, _ = part.propose(context)
            unused = [(0, 0), (0, self.num_nodes - tree.tokens.shape[1])]
            parent = jnp.pad(tree.parent, unused, constant_values=-1)
            padded.append(
                DraftTree(jnp.pad(tree.tokens, unused), parent, jnp.pad(tree.depth, unused))
            )
        rows = jnp.arange(padded[0].tokens.shape[0])
        return jax.tree.map(lambda *x: jnp.stack(x)[rows % len(self.parts), rows], *padded), ()


def random_trees(truth):
    """Random shapes; right tokens mixed with others, which are often banned or end a row."""
    rng = np.random.default_rng(7)
    parents = np.full((17, 9), -1, np.int32)
    for variant in range(17):
        for node in range(1, 9):
            candidates = [k for k in range(node) if k == 0 or parents[variant, k] >= 0]
            parents[variant, node] = -1 if rng.random() < 0.15 else rng.choice(candidates[-3:])
    offset = rng.choice([0, 0, 0, 1, 2, 12], parents.shape).astype(np.int32)
    return TableDrafter(truth, offset, parents)


@pytest.fixture(scope="module")
def prompts():
    return oracles.ragged_prompts(11, ROWS)


@pytest.fixture(scope="module")
def decoder(tiny):
    return oracles.make_decoder(*tiny, eos_ids=EOS, bucket=BUCKET)


@pytest.fixture(scope="module")
def plain(decoder, prompts):
    """plain(sampling) -> completions of plain decoding, cached."""
    return functools.cache(
        lambda sampling: generate(decoder, prompts, PlainDrafter(), sampling=sampling, seed=SEED)
    )


@pytest.fixture(scope="module")
def logits_of_tokens(tiny):
    """Teacher-forced logits [T, V] of one sequence, NumPy float64 without a cache."""
    model, params = tiny
    return lambda tokens: oracles.forward(params, model.config, tokens)[0]


def settings():
    for name, options in OPTIONS.items():
        if name != "min_p":  # greedy takes the best token, which min-p keeps
            yield pytest.param(Sampling(**options), id=f"{name}-greedy")
        yield pytest.param(Sampling(temperature=1.2, **options), id=f"{name}-sampled")


@pytest.mark.parametrize("sampling", list(settings()))
def test_each_option_equals_numpy_and_no_tree_changes_it(
    sampling, decoder, plain, prompts, logits_of_tokens
):
    outputs = tokens_of(plain(sampling))
    off = Sampling(temperature=sampling.temperature)
    assert sum(a != b for a, b in zip(outputs, tokens_of(plain(off)), strict=True)) > ROWS // 4
    for row in range(0, ROWS, 3):
        prompt, output = prompts[row], outputs[row]
        key = jax.random.fold_in(jax.random.key(SEED), row)
        logits = logits_of_tokens([*prompt, *output])[len(prompt) - 1 :]
        for place, token in enumerate(output):
            by_hand = oracles.drawn(logits[place], prompt, output[:place], sampling, EOS, key)
            assert token == by_hand, (row, place)
        assert len(output) == NEW or output[-1] in EOS

    mixed = MixedDrafter(
        (
            random_trees(truth_table(prompts, outputs, BUCKET + NEW)),
            BestFirstDrafter(8, 3),
            StaticDrafter(StaticTree.from_branching((3, 2)), 3),
        )
    )
    drafted = generate(decoder, prompts, mixed, sampling=sampling, seed=SEED)
    assert tokens_of(drafted) == outputs
    for part in range(3):
        runs = {run for completion in drafted[part::3] for run in completion.runs[1:-1]}
        assert {1, 2} <= runs  # some drafts of every kind were accepted, and some refused


def test_tokens_that_may_not_be_drawn_are_refused_at_inner_nodes(kit, tiny, prompts, plain):
    """Under every true token of a chain hang an end of sequence and a banned token, first."""
    sampling = Sampling(banned_tokens=(0, 5), min_new_tokens=7)
    outputs = tokens_of(plain(sampling))
    assert min(map(len, outputs)) == 8  # an end of sequence after 7 tokens, as soon as it may
    assert not {0, 5} & {token for output in outputs for token in output}

    def tree(row, sequence):
        ahead = outputs[row][len(sequence) - len(prompts[row]) :][:3]
        nodes, parent = [], 0
        for token in ahead:
            nodes += [(EOS[row % 2], parent), (5, parent), (token, parent)]
            parent = len(nodes)
        return nodes

    decoder = oracles.make_decoder(*tiny, eos_ids=EOS, bucket=BUCKET)
    drafted = generate(decoder, prompts, kit.HostDrafter(10, 3, {"tree": tree}), sampling=sampling)
    assert tokens_of(drafted) == outputs
    # All that is true is accepted: passes of four tokens, an end of sequence at its own place too.
    assert all(c.calls == -(-(len(c.tokens) - 1) // 4) for c in drafted)
    # Without the ban the same model ends rows before that.
    assert min(len(tokens) for tokens in tokens_of(plain(Sampling()))) < 8


def test_penalties_count_the_path_and_nothing_else():
    """After each node of a tree: the row's tokens, its ancestors and itself, no sibling."""
    rng = np.random.default_rng(0)
    sampling = Sampling(
        repetition_penalty=1.5, presence_penalty=0.8, banned_tokens=(2,), min_new_tokens=4
    )
    prompts = np.array([[3, 9, 0, 0], [5, 5, 1, 7]], np.int32)
    prompt_length = np.array([2, 4], np.int32)
    outputs = [(10, 4), (12,)]
    parents = (-1, 0, 0, 1, 3, -1, 2)
    depths = (0, 1, 1, 2, 3, 0, 2)
    paths = ((), (1,), (2,), (1, 3), (1, 3, 4), None, (2, 6))
    tokens = rng.integers(0, VOCAB, (2, 7)).astype(np.int32)
    tokens[:, 0], tokens[0, 4] = (4, 12), tokens[0, 1]  # a token twice on one path
    tree = DraftTree(*(jnp.broadcast_to(jnp.array(x), (2, 7)) for x in (tokens, parents, depths)))
    logits = rng.normal(size=(2, 7, VOCAB)).astype(np.float32) * 3
    history = start_history(sampling, jnp.array(prompts), jnp.array(prompt_length), VOCAB)
    # Emitted in two passes; of the second, the tokens after the count are not output.
    emitted = np.array([[10, 4, 6], [12, 11, 3]], np.int32)
    history = extend_history(history, jnp.array(emitted[:, :1]), jnp.ones((2, 1), bool))
    second = jnp.array([[True, False], [False, False]])
    history = extend_history(history, jnp.array(emitted[:, 1:]), second)
    length = jnp.array([4, 5])
    adjusted = adjust(jnp.array(logits), sampling, history, tree, length, (0, 8), max_depth=3)
    for row, output in enumerate(outputs):
        prompt = prompts[row, : prompt_length[row]].tolist()
        for node, path in enumerate(paths):
            if path is not None:
                before = (*output, *tokens[row, list(path)].tolist())
                expected = oracles.adjusted(logits[row, node], prompt, before, sampling, (0, 8))
                found = np.where(adjusted[row, node] < -1e29, -np.inf, adjusted[row, node])
                np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("min_p", [0.0, 1e-3, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_min_p_equals_numpy(min_p, top_p):
    """After top-p: which tokens top-p keeps does not depend on min-p."""
    logits = np.random.default_rng(0).normal(size=(50, VOCAB)).astype(np.float32) * 2
    kept = np.asarray(warp(jnp.asarray(logits), Sampling(0.8, 0, top_p, min_p))) > -1e29
    by_top_p = np.asarray(warp(jnp.asarray(logits), Sampling(0.8, 0, top_p))) > -1e29
    probability = np.exp(logits.astype(np.float64) / 0.8)
    shares = probability / probability.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(kept, by_top_p & (shares >= min_p))
    assert min_p < 0.4 or kept.sum() < by_top_p.sum()


def test_processors_of_transformers_agree():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, VOCAB)).astype(np.float32) * 3
    sequences = rng.integers(0, VOCAB, (40, 6))
    sampling = Sampling(
        temperature=0.7,
        top_k=9,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.4,
        banned_tokens=(2, 7),
        min_new_tokens=4,
    )
    chain = process.LogitsProcessorList(
        [
            process.RepetitionPenaltyLogitsProcessor(1.4),
            process.SuppressTokensLogitsProcessor([2, 7]),
            process.MinNewTokensLengthLogitsProcessor(3, 4, [0, 5]),  # 3 of 6 tokens are prompt
            process.TemperatureLogitsWarper(0.7),
            process.TopKLogitsWarper(9),
            process.TopPLogitsWarper(0.9),
            process.MinPLogitsWarper(0.05),
        ]
    )
    expected = torch.softmax(chain(torch.tensor(sequences), torch.tensor(logits)), -1).numpy()
    prompts = jnp.asarray(sequences[:, :3], jnp.int32)
    history = start_history(sampling, prompts, jnp.full(40, 3), VOCAB)
    history = extend_history(history, jnp.asarray(sequences[:, 3:]), jnp.ones((40, 3), bool))
    adjusted = adjust(
        jnp.asarray(logits)[:, None],
        sampling,
        history,
        root_only(jnp.asarray(sequences[:, -1])),
        jnp.full(40, 6),
        (0, 5),
        max_depth=0,
    )
    found = np.asarray(jax.nn.softmax(warp(adjusted, sampling)))[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found > 0, expected > 0)
    assert 1 < (found > 0).sum(axis=1).mean() < 9


def test_what_is_off_is_not_traced(tiny, monkeypatch):
    """The programs without options are those of a loop that cannot adjust."""
    model, params = tiny

    def programs(**options):
        spec = DecodeSpec(32, EOS, 0, Sampling(temperature=1.0, **options), True)
        static = (model, params, BestFirstDrafter(4, 3), spec)
        keys = jax.random.split(jax.random.key(0), 2)
        rows = Rows(jnp.zeros((2, 4), jnp.int32), jnp.array([4, 2]), jnp.array([3, 3]), keys)
        prefill = functools.partial(loop.prefill, *static)
        state = jax.eval_shape(prefill, rows)
        step = jax.make_jaxpr(functools.partial(loop.decode_step, *static))(state)
        return str(jax.make_jaxpr(prefill)(rows)) + str(step), state

    off, state = programs()
    assert not jax.tree.leaves(state.history)
    on = {name: programs(**options) for name, options in OPTIONS.items()}
    assert all(len(text) > len(off) for text, _ in on.values())
    fields = {name: len(jax.tree.leaves(state.history)) for name, (_, state) in on.items()}
    assert fields == {
        "repetition": 2,
        "presence": 1,
        "banned": 0,
        "min_new": 1,
        "min_p": 0,
        "all": 3,
    }
    monkeypatch.setattr(forward, "adjust", lambda logits, *_: logits)
    monkeypatch.setattr(state_module, "extend_history", lambda history, *_: history)
    monkeypatch.setattr(loop, "start_history", lambda *_: None)
    assert programs()[0] == off


def test_bans_that_cannot_work_are_refused(decoder):
    def draw_one(**options):
        return generate(
            decoder, [[1]], PlainDrafter(), max_new_tokens=1, sampling=Sampling(**options)
        )

    with pytest.raises(UserError, match="token 13 cannot be banned: .* ids 0 to 12"):
        draw_one(banned_tokens=(0, 13))
    others = tuple(token for token in range(VOCAB) if token not in EOS)
    assert draw_one(banned_tokens=others)[0].finish == "eos"
    for options in (
        {"banned_tokens": range(VOCAB)},
        {"banned_tokens": others, "min_new_tokens": 1},
    ):
        with pytest.raises(UserError, match="no token is left"):
            draw_one(**{**options, "banned_tokens": tuple(options["banned_tokens"])})
