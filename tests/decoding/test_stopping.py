"""Where a completion ends: end of sequence at every place in a run, limits, full rows.

The end-of-sequence ids are fixed when a loop is compiled, so a produced token is made one by
renaming: two ids change places in the embedding (which is the LM head too) and in the prompts,
and the model goes on as before with the new names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.decoding import decoder as decoder_module
from ssjax.decoding.drafters import PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows

BATCH, NEW, DEPTH = 8, 12, 3
BUCKET, CAPACITY = 16, 64
LENGTHS = (1, 16, 3, 8, 5, 12, 2, 16)


@pytest.fixture(scope="module")
def prompts(kit):
    return kit.random_prompts(5, BATCH, LENGTHS)


@pytest.fixture(scope="module")
def truth(endless, prompts):
    """Plain greedy continuations that fill row 1 and 7 (prompts as long as the bucket) exactly."""
    room = CAPACITY - BUCKET
    completions = oracles.generate(endless, prompts, PlainDrafter(), max_new_tokens=room)
    assert all(len(c.tokens) == CAPACITY - BUCKET and c.finish == "length" for c in completions)
    return [c.tokens for c in completions]


@pytest.fixture(scope="module")
def drafter(kit):
    return kit.HostDrafter(8, DEPTH, {})


@pytest.fixture
def run(model, params, kit, drafter, prompts, truth):
    """Decodes with names changed: run(pairs, limits, distract) -> completions, expected."""

    def run(pairs=(), limits=NEW, distract=None):
        name = np.arange(kit.VOCAB)
        for first, second in pairs:
            name[[first, second]] = name[[second, first]]
        old = np.argsort(name)  # table row of the new name n is the old row old[n]
        renamed = {**params, "embedder": params["embedder"][old]}
        new_prompts = [tuple(int(name[t]) for t in p) for p in prompts]
        outputs = [tuple(int(name[t]) for t in out) for out in truth]

        def tree(row, sequence):
            ahead = outputs[row][len(sequence) - len(prompts[row]) :][:DEPTH]
            if distract is not None:
                return distract(ahead)
            return [(token, depth) for depth, token in enumerate(ahead)]

        drafter.write["tree"] = tree
        decoder = kit.make_decoder(model, renamed)
        completions = oracles.generate(decoder, new_prompts, drafter, max_new_tokens=limits)
        expected = []
        for output, limit in zip(outputs, np.broadcast_to(limits, BATCH), strict=True):
            kept = output[:limit]
            ends = [i for i, token in enumerate(kept) if token in kit.EOS]
            expected.append(kept[: ends[0] + 1] if ends else kept)
        return completions, expected

    return run


def check(completions, expected, eos_ids):
    for completion, tokens in zip(completions, expected, strict=True):
        assert completion.tokens == tokens
        assert completion.finish == ("eos" if tokens and tokens[-1] in eos_ids else "length")
        assert sum(completion.runs) == len(tokens)
        assert len(completion.runs) == completion.calls + 1


def unused_ids(truth, count):
    """Ids that no row produces, to be given the names of the end-of-sequence ids."""
    seen = {token for output in truth for token in output[:NEW]}
    return [token for token in range(50) if token not in seen][:count]


@pytest.fixture(scope="module")
def quiet(truth, kit):
    """Names under which no row ends before NEW tokens."""
    unused = unused_ids(truth, len(kit.EOS))
    assert len(unused) == len(kit.EOS)
    return list(zip(kit.EOS, unused, strict=True))


@pytest.mark.parametrize("row", [1, 2, 4, 5])  # row 0 repeats one token
def test_end_of_sequence_at_every_position_of_a_run(row, run, truth, kit):
    offsets = set()
    for token in dict.fromkeys(truth[row][:NEW]):
        pairs = [(kit.EOS[1], token)]
        completions, expected = run(pairs)
        check(completions, expected, kit.EOS)
        completion = completions[row]
        if completion.finish == "eos" and completion.calls:
            offsets.add(completion.runs[-1] - 1)
            assert all(length == DEPTH + 1 for length in completion.runs[1:-1])
    assert len(offsets) >= 3


def test_end_of_sequence_as_first_token(run, truth, kit):
    for row in range(BATCH):
        completions, expected = run([(kit.EOS[0], truth[row][0])])
        check(completions, expected, kit.EOS)
        assert completions[row].tokens == (kit.EOS[0],)
        assert completions[row].finish == "eos"
        assert (completions[row].calls, completions[row].runs) == (0, (1,))
        assert completions[row].accepted == (0,) * DEPTH


def test_every_end_of_sequence_id_ends(run, truth, kit):
    first, second = list(dict.fromkeys(truth[1][1:NEW]))[:2]
    for pairs in ([(kit.EOS[0], first), (kit.EOS[1], second)], [(kit.EOS[1], first)]):
        completions, expected = run(pairs)
        check(completions, expected, kit.EOS)
        assert completions[1].finish == "eos"


def test_rejected_end_of_sequence_does_not_end(run, quiet, kit):
    def siblings(ahead):
        """The true chain, with an end of sequence before it under every node."""
        nodes, parent = [], 0
        for token in ahead:
            nodes += [(kit.EOS[0], parent), (token, parent)]
            parent = len(nodes)
        return nodes

    def ends_alone(ahead):
        return [(kit.EOS[depth % 2], depth) for depth in range(len(ahead))]

    completions, expected = run(quiet, distract=siblings)
    assert all(len(tokens) == NEW for tokens in expected)
    check(completions, expected, kit.EOS)
    assert all(c.calls == -(-(NEW - 1) // (DEPTH + 1)) for c in completions)
    completions, expected = run(quiet, distract=ends_alone)
    check(completions, expected, kit.EOS)
    assert all(c.calls == NEW - 1 and sum(c.accepted) == 0 for c in completions)


def test_limits_end_inside_runs(run, quiet, kit):
    for limits in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [8, 9, 10, 11, 12, 0, 1, 5]):
        completions, expected = run(quiet, limits)
        check(completions, expected, kit.EOS)
        for completion, limit in zip(completions, limits, strict=True):
            assert len(completion.tokens) == limit and completion.finish == "length"
            assert completion.calls == -(-max(limit - 1, 0) // (DEPTH + 1))
    for limit in (0, 1):
        completions, expected = run(quiet, limit)
        check(completions, expected, kit.EOS)
        assert all(c.calls == 0 and c.runs == (limit,) for c in completions)


def test_end_of_sequence_against_the_limit(run, truth, kit):
    """Just before the limit, at it, and just after it, in one and the same run."""
    finishes = set()
    token = truth[1][6]
    where = truth[1].index(token)
    for limit in (where, where + 1, where + 2):
        completions, expected = run([(kit.EOS[0], token)], limit)
        check(completions, expected, kit.EOS)
        finishes.add((limit - where, len(completions[1].tokens) - where, completions[1].finish))
    assert not set(kit.EOS) & set(truth[1][: where + 1])
    assert finishes == {(0, 0, "length"), (1, 1, "eos"), (2, 1, "eos")}


def test_row_filled_to_its_last_slot(endless, drafter, prompts, truth):
    room = CAPACITY - BUCKET
    drafter.write["tree"] = lambda row, sequence: [
        (token, depth)
        for depth, token in enumerate(
            # Past the end too: the drafts of a full row reach after its last slot.
            (truth[row] + (1, 2, 3))[len(sequence) - len(prompts[row]) :][:DEPTH]
        )
    ]
    completions = oracles.generate(endless, prompts, drafter, max_new_tokens=room)
    assert [c.tokens for c in completions] == truth
    assert all(c.calls == -(-(room - 1) // (DEPTH + 1)) for c in completions)
    assert max(len(p) for p in prompts) + room == CAPACITY


def test_prompts_that_leave_no_room(endless, drafter, prompts, truth, kit):
    """As long as the row, or one token shorter: what is asked for is cut, nothing is written."""
    padded = np.full((BATCH, BUCKET), kit.PAD, np.int32)
    lengths = np.array([BUCKET - 1, BUCKET] * (BATCH // 2), np.int32)
    for row, prompt in enumerate(prompts):
        whole = (*prompt, *truth[row])[: lengths[row]]
        padded[row, : len(whole)] = whole
    drafter.write["tree"] = lambda row, sequence: [(1, depth) for depth in range(DEPTH)]
    spec = DecodeSpec(BUCKET, kit.NEVER, kit.PAD, Sampling(), True)
    static = (endless.model, endless.params, drafter, spec)
    keys = jax.random.split(jax.random.key(0), BATCH)
    rows = Rows(padded, lengths, np.full(BATCH, 9), keys)
    state = decoder_module.prefill_program(*static, rows)
    assert np.asarray(state.done).all()
    found = decoder_module.completions_of(state, lengths, kit.NEVER, DEPTH)
    for row, completion in enumerate(found):
        free = BUCKET - lengths[row]
        at = lengths[row] - len(prompts[row])
        assert completion.tokens == truth[row][at : at + free]
        assert (completion.finish, completion.runs) == ("length", (free,))
    inside = np.arange(BUCKET) < lengths[:, None]
    np.testing.assert_array_equal(np.asarray(state.tokens)[inside], padded[inside])


def test_nothing_is_written_after_the_end(decoder, drafter, prompts, truth, kit):
    padded = np.full((BATCH, BUCKET), kit.PAD, np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    drafter.write["tree"] = lambda row, sequence: [
        (token, depth)
        for depth, token in enumerate(truth[row][len(sequence) - len(prompts[row]) :][:DEPTH])
    ]
    spec = DecodeSpec(CAPACITY, kit.EOS, kit.PAD, Sampling(), True)
    limits = np.array([5, 6, 7, 8, 9, 10, 11, 0], np.int32)
    keys = jax.random.split(jax.random.key(0), BATCH)
    static = (decoder.model, decoder.params, drafter, spec)
    rows = Rows(padded, np.array(LENGTHS, np.int32), limits, keys)
    state = decoder_module.prefill_program(*static, rows)
    state = decoder_module.decode_program(*static, state)
    length = np.asarray(state.length)
    assert (length <= np.array(LENGTHS) + limits).all() and len(set(length.tolist())) > 3
    after = np.arange(CAPACITY) >= length[:, None]
    assert (np.asarray(state.tokens)[after] == kit.PAD).all()
    assert (np.asarray(state.born)[after] == 0).all()
    # The last token is not cached; a row with a limit of 0 never drew after its prompt.
    cached = np.where(limits > 0, length - 1, length)
    for leaf in jax.tree.leaves(state.cache):
        slots = jnp.moveaxis(leaf, 2, 1)[np.arange(CAPACITY) >= cached[:, None]]
        assert not np.asarray(slots).any()
