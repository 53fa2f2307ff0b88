"""What drafts would have done: known outputs replayed with streams at every token.

One causal pass over prompt and output, streams beside every token that a pass may start
after. At each output token as root the drafter writes its real tree, which is walked along
the tokens that are known to follow.

    output        a  b  c  d  e  <eos>
    accepted      2  0  1  2  0           draft nodes kept if a pass starts with this root
    passes        a->(b c) d     d->(e <eos>)

A pass starts where the pass before ended, so the passes of a decoding are a chain through
these numbers, beginning with the token of the prefill: root i goes to i + 1 + accepted[i]. The
chain is walked on the host. For greedy decoding it is the real one: same passes, same runs,
up to rounding where two streams' tokens come within float error of each other.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.acceptance import accept
from ssjax.decoding.candidates import NUM_RANKED_ANEW, find_candidates
from ssjax.decoding.chances import log_chances, rows_needed
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import Context, Drafter
from ssjax.decoding.tree import ancestor_mask
from ssjax.models.attention import Causal
from ssjax.models.parent import make_correction, with_parents
from ssjax.parallel.partitioning import to_host

Tokens = Sequence[int]

UNKNOWN = -1  # past the end of an output: no token, no rank
# Roots whose [J, V] probabilities are in memory at once.
_ROOTS_AT_ONCE = 16
_WIDTH_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class Trace:
    """One output of n tokens, replayed. Its last token roots nothing."""

    ranks: np.ndarray  # [n - 1, J] int32, rank of the token j + 1 after the root, or UNKNOWN
    accepted: np.ndarray  # [n - 1, drafters] int32, draft nodes kept, the root not counted
    rows: np.ndarray  # [n - 1, drafters] int32, that the draft needs, the root counted
    events: "Events"
    nodes: tuple["Nodes", ...] = ()  # of each drafter that is judged


class Events(NamedTuple):
    """What streams said of tokens that came, each told the true token before."""

    scores: np.ndarray  # [n - 1, J, W] float32, log-probabilities of the candidates
    # [n - 1, J] int32, which of them came; W: none of them; UNKNOWN, also where the token before
    # was no candidate, so that no draft leads here
    places: np.ndarray


class Nodes(NamedTuple):
    """What a drafter promised of its nodes, and what came of them."""

    log_chances: np.ndarray  # [n - 1, M] float32, -inf for unused nodes and the root
    # [n - 1, M] int32: 1 for a node whose path is the tokens that came, 0 for one whose is not,
    # UNKNOWN past the end
    kept: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a drafter needs for some outputs, as `Completion` counts it."""

    runs: tuple[tuple[int, ...], ...]  # of each output, tokens emitted by each pass
    rows: tuple[int, ...]  # that each pass needs, the root counted; of all outputs in turn

    @property
    def calls(self) -> int:
        return sum(len(runs) for runs in self.runs)

    @property
    def tokens_per_call(self) -> float:
        """0 where no output needs a pass."""
        return sum(sum(runs) for runs in self.runs) / max(self.calls, 1)


def replay(
    decoder: Decoder,
    prompts: Sequence[Tokens],
    outputs: Sequence[Tokens],
    drafters: Sequence[Drafter],
    judged: Sequence[Drafter] = (),
) -> list[Trace]:
    """Replays outputs of `decoder`, one a time.

    Args:
      decoder: a model with streams.
      prompts: ids, at least one each.
      outputs: what the model made of them, a final end of sequence included.
      drafters: any that keep nothing between passes; compiled together, once.
      judged: best-first and static ones whose nodes are looked at one by one.
    """
    longest = max(len(p) + len(o) for p, o in zip(prompts, outputs, strict=True))
    width = _round_up(longest, _WIDTH_MULTIPLE)
    num_roots = _round_up(max(max(len(o) for o in outputs) - 1, 1), _ROOTS_AT_ONCE)
    traces = []
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = np.full(width, decoder.pad_id, np.int32)
        tokens[: len(prompt) + len(output)] = (*prompt, *output)
        lengths = np.array([len(prompt), len(prompt) + len(output)], np.int32)
        with jax.set_mesh(decoder.mesh):
            who = (tuple(drafters), tuple(judged))
            static = (decoder.model, decoder.params, who, num_roots, decoder.pad_id)
            found = to_host(_replay(*static, jnp.asarray(tokens), jnp.asarray(lengths)))
        known = max(len(output) - 1, 0)
        traces.append(Trace(*jax.tree.map(lambda x, known=known: x[:known], found)))
    return traces


def acceptance_table(traces: Sequence[Trace], num_ranks: int) -> np.ndarray:
    """Shares by stream and rank, [J, num_ranks] float64; all roots count alike.

    A stream's share is taken over the roots after which its token is known; 0 where there is
    none.
    """
    ranks = np.concatenate([trace.ranks for trace in traces])
    hits = ranks[:, :, None] == np.arange(num_ranks)
    return hits.sum(axis=0) / np.maximum((ranks != UNKNOWN).sum(axis=0), 1)[:, None]


def predict(traces: Sequence[Trace], drafter: int) -> Prediction:
    """Walks the chain of passes of one drafter, by its index in `replay`."""
    runs = [_runs(trace.accepted[:, drafter]) for trace in traces]
    rows = []
    for trace, own in zip(traces, runs, strict=True):
        roots = np.cumsum((0, *own[:-1]))[: len(own)]
        rows += trace.rows[roots, drafter].tolist()
    return Prediction(tuple(runs), tuple(rows))


def _runs(accepted: np.ndarray) -> tuple[int, ...]:
    """Tokens emitted by each pass; accepted [n - 1]. The last pass is cut where the output ends."""
    runs, root, last = [], 0, len(accepted)
    while root < last:
        runs.append(min(int(accepted[root]) + 1, last - root))
        root += runs[-1]
    return tuple(runs)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _replay(model, params, who, num_roots, pad_id, tokens, lengths):
    """The fields of a `Trace` for num_roots roots of one output.

    Args:
      model, params: of the decoder.
      who, num_roots, pad_id: static; who are the drafters, and those that are judged.
      tokens: [T] int32, prompt and output, padded.
      lengths: [2] int32, of the prompt and of both together.
    """
    width, num_streams = tokens.shape[0], model.streams.num_streams
    prompt_length, length = lengths
    roots = jnp.minimum(prompt_length + jnp.arange(num_roots), length - 1)
    # The token before the root is the last accepted node of the pass before: streams run there.
    anchors = jnp.maximum(roots - 1, 0)
    positions = jnp.arange(width)[None]
    more = {"anchors": anchors[None], "num_streams": num_streams}
    output = model.apply({"params": params}, tokens[None], positions, Causal(), **more)

    def known(roots, offset):
        """The known tokens at these offsets from the roots, [C, ...] int32."""
        place = roots.reshape(-1, *[1] * (offset.ndim - 1)) + offset
        return jnp.where(place < length, tokens[jnp.minimum(place, width - 1)], UNKNOWN)

    def at_roots(chunk):
        hidden, roots = chunk  # [C, J, D], [C]
        targets = known(roots, 1 + jnp.arange(num_streams)[None])

        def table(width):
            return find_candidates(model, params, hidden, tokens[roots], width)

        def propose(drafter):
            candidates = None
            if drafter.num_streams:
                candidates = table(drafter.num_candidates).of_streams(drafter.num_streams)
            context = Context(seen, roots + 1, tokens[roots], candidates, None, ())
            return drafter.propose(context)[0], candidates

        def judge(drafter):
            tree, candidates = propose(drafter)
            chances = log_chances(tree, drafter.judged(candidates)).at[:, 0].set(-jnp.inf)
            return Nodes(chances, _kept(tree, known(roots, tree.depth)))

        seen = jnp.where(jnp.arange(width) <= roots[:, None], tokens, pad_id)
        accepted = [jnp.zeros((roots.shape[0], 0), jnp.int32)]
        rows = list(accepted)
        for drafter in who[0]:
            tree, _ = propose(drafter)
            drawn = known(roots, 1 + tree.depth)
            accepted.append(accept(tree, drawn, drafter.max_depth).num_accepted[:, None])
            rows.append(rows_needed(tree)[:, None])
        events = _events(table(NUM_RANKED_ANEW), targets)
        accepted, rows = (jnp.concatenate(x, axis=1) for x in (accepted, rows))
        ranks = _ranks(model, params, hidden, tokens[roots], targets)
        return ranks, accepted, rows, events, tuple(judge(drafter) for drafter in who[1])

    def chunks(x):
        return x.reshape(-1, _ROOTS_AT_ONCE, *x.shape[1:])

    found = jax.lax.map(at_roots, (chunks(output.stream_hidden[0]), chunks(roots)))
    return jax.tree.map(lambda x: x.reshape(num_roots, *x.shape[2:]), found)


def _ranks(model, params, hidden, root, targets) -> jax.Array:
    """`Trace.ranks` of streams [C, J, D] that are told the true token before theirs."""
    if model.streams.knows_parents:
        parents = jnp.concatenate([root[:, None], targets[:, :-1]], axis=1)
        hidden = with_parents(make_correction(params), hidden, jnp.maximum(parents, 0))
    logits = model.apply({"params": params}, hidden, method="logits")
    return jnp.where(targets == UNKNOWN, UNKNOWN, _rank(logits, targets))


def _events(candidates, targets) -> Events:
    """Of the tokens that came, targets [C, J]."""
    tokens, scores = candidates.tokens, candidates.scores  # [C, J, W], [C, J, P, W]
    came = tokens == targets[:, :, None]
    among = came.any(axis=2)
    place = jnp.argmax(came, axis=2)
    above = jnp.concatenate([jnp.zeros_like(place[:, :1]), place[:, :-1]], axis=1)
    led_here = jnp.concatenate([jnp.ones_like(among[:, :1]), among[:, :-1]], axis=1)
    above = jnp.minimum(above, scores.shape[2] - 1)
    scores = jnp.take_along_axis(scores, above[:, :, None, None], axis=2)[:, :, 0]
    place = jnp.where(among, place, tokens.shape[2])
    return Events(scores, jnp.where(led_here & (targets != UNKNOWN), place, UNKNOWN))


def _kept(tree, came) -> jax.Array:
    """`Nodes.kept`; came [C, M]: the tokens at the nodes' places, UNKNOWN past the end."""
    deepest = tree.tokens.shape[1] - 1
    mask = ancestor_mask(tree.parent, deepest)
    wrong = (tree.tokens != came) & (tree.depth > 0)
    kept = ~(mask & wrong[:, None, :]).any(axis=2)
    return jnp.where(came == UNKNOWN, UNKNOWN, kept.astype(jnp.int32))


def _rank(scores, ids):
    """Place of each id in the falling order of scores, the lower id first among equals."""
    own = jnp.take_along_axis(scores, jnp.maximum(ids, 0)[..., None], axis=-1)
    lower = jnp.arange(scores.shape[-1]) < ids[..., None]
    return ((scores > own) | ((scores == own) & lower)).sum(axis=-1, dtype=jnp.int32)


def _round_up(size, multiple):
    return -(-size // multiple) * multiple
