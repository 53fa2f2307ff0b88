"""Evidence for what a mode promises: equal tokens, explained differences, exact sampling.

Sequences are replayed teacher-forced: one plain pass over prompt and output, no cache and no
draft, gives the model's own logits at every position. That is another algorithm than the
decoder's, so it can judge it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssjax.decoding.sampling import Sampling, warp
from ssjax.models.attention import MASKED, Causal
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer
from ssjax.parallel.partitioning import one_device, to_host

Tokens = Sequence[int]
# replay(prompt, output, width) -> float32 logits [len(output), V]; see `make_replay`
Replay = Callable[[Tokens, Tokens, int], np.ndarray]

# Bins of the goodness-of-fit test; with 20 and a few thousand tokens each holds over a hundred.
_NUM_BINS = 20


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where an output first leaves the expected one."""

    prompt: int  # index
    position: int  # in the output
    expected: int | None  # token; None: the output had ended
    found: int | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A difference between roundings, judged by float32 logits."""

    difference: Difference
    margin: float  # largest minus second largest float32 logit there
    noise: float  # largest change of a logit by rounding, over that whole replay

    @property
    def is_rounding(self) -> bool:
        """Two logits can swap only if rounding moves them by more than what lies between."""
        return self.margin <= 2 * self.noise


@dataclasses.dataclass(frozen=True)
class Fit:
    """A chi-square test of sampled tokens against the model's own distribution."""

    num_tokens: int
    statistic: float
    degrees: int
    p_value: float


def first_differences(expected: Sequence[Tokens], found: Sequence[Tokens]) -> list[Difference]:
    """One entry for every output that is not token for token the expected one."""
    differences = []
    for prompt, (a, b) in enumerate(zip(expected, found, strict=True)):
        if tuple(a) == tuple(b):
            continue
        same = sum(1 for _ in _common_prefix(a, b))
        at = [tokens[same] if same < len(tokens) else None for tokens in (a, b)]
        differences.append(Difference(prompt, same, *at))
    return differences


def make_replay(model: Transformer, params: Params, mesh: Mesh | None = None) -> Replay:
    """Returns replay(prompt, output, width) -> float32 logits [len(output), V].

    Row i is the distribution that output[i] was drawn from. width is the padded length, so
    that replays of one width compile once.

    Args:
      model: in the form of the parameters.
      params: of the model.
      mesh: that they are divided over; None: the first device.
    """
    all_streams = model.streams.num_streams if model.streams.main_reads_streams else 0

    @jax.jit
    def forward(params, tokens, anchors):
        positions = jnp.arange(tokens.shape[1])[None]
        output = model.apply(
            {"params": params},
            tokens,
            positions,
            Causal(),
            anchors=anchors,
            num_streams=all_streams,
        )
        hidden = jnp.take_along_axis(output.hidden, anchors[:, :, None], axis=1)
        return model.apply({"params": params}, hidden, method="logits")[0]

    def replay(prompt: Tokens, output: Tokens, width: int) -> np.ndarray:
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(prompt) + len(output)] = (*prompt, *output)
        # As many anchors as fit, so that the shapes depend on the width alone.
        anchors = np.minimum(len(prompt) - 1 + np.arange(width), width - 1)[None]
        with jax.set_mesh(mesh or one_device()):
            return np.asarray(to_host(forward(params, tokens, anchors)))[: len(output)]

    return replay


def adjusted(replay: Replay, sampling: Sampling, eos_ids: Sequence[int]) -> Replay:
    """A replay whose logits have the penalties and bans of `sampling`, token by token in NumPy."""

    def with_penalties(prompt: Tokens, output: Tokens, width: int) -> np.ndarray:
        logits = np.array(replay(prompt, output, width))
        vocab_size = logits.shape[1]
        banned = [token for token in sampling.banned_tokens if token < vocab_size]
        early = [token for token in eos_ids if token < vocab_size]
        for place, row in enumerate(logits):
            emitted = sorted(set(output[:place]))
            seen = sorted({*prompt, *emitted})
            factor = np.float32(sampling.repetition_penalty)
            row[seen] = np.where(row[seen] > 0, row[seen] / factor, row[seen] * factor)
            row[emitted] -= np.float32(sampling.presence_penalty)
            row[banned] = MASKED
            if place < sampling.min_new_tokens:
                row[early] = MASKED
        return logits

    return with_penalties


def explain(
    differences: Sequence[Difference],
    prompts: Sequence[Tokens],
    outputs: Sequence[Tokens],
    exact: Replay,
    rounded: Replay,
    width: int,
) -> list[Explanation]:
    """Margins and noise at the differences.

    Args:
      differences: from `first_differences`.
      prompts, outputs: the expected ones.
      exact: a float32 replay.
      rounded: a replay in the dtype that the outputs were made in.
      width: at least prompt and output together.
    """
    explanations = []
    for difference in differences:
        prompt, output = prompts[difference.prompt], outputs[difference.prompt]
        logits = exact(prompt, output, width)
        noise = np.abs(rounded(prompt, output, width) - logits).max()
        # An output that had ended is compared at its last token, which said so.
        second, first = np.sort(logits[min(difference.position, len(output) - 1)])[-2:]
        explanations.append(Explanation(difference, float(first - second), float(noise)))
    return explanations


def goodness_of_fit(
    prompts: Sequence[Tokens],
    outputs: Sequence[Tokens],
    replay: Replay,
    sampling: Sampling,
    width: int,
    seed: int = 0,
) -> Fit:
    """Tests sampled outputs against the distributions they should have been drawn from.

    Each token becomes a number that is uniform on [0, 1) if and only if the token was drawn from
    its distribution: a random point of its own step of the cumulative distribution, tokens in
    falling order of probability. Those numbers are independent over positions, so the tokens of
    all outputs make one chi-square test.

    Args:
      prompts, outputs: at least a few hundred tokens together.
      replay: of the model in the dtype that was sampled from, `adjusted` where penalties or
        bans were used.
      sampling: temperature, top-k, top-p and min-p that were used.
      width: at least prompt and output together.
      seed: of the random points.
    """
    rng = np.random.default_rng(seed)
    places = []
    for prompt, output in zip(prompts, outputs, strict=True):
        if not output:
            continue
        warped = warp(jnp.asarray(replay(prompt, output, width)), sampling)
        probability = np.asarray(jax.nn.softmax(warped, axis=-1), np.float64)
        for row, token in zip(probability, output, strict=True):
            own = row[token]
            above = row[(row > own) | ((row == own) & (np.arange(len(row)) < token))].sum()
            places.append((above + rng.random() * own) / row.sum())
    places = np.minimum(np.array(places), np.nextafter(1.0, 0.0))
    counts = np.bincount((places * _NUM_BINS).astype(int), minlength=_NUM_BINS)
    expected = len(places) / _NUM_BINS
    statistic = float(((counts - expected) ** 2 / expected).sum())
    degrees = _NUM_BINS - 1
    p_value = float(jax.scipy.special.gammaincc(degrees / 2, statistic / 2))
    return Fit(len(places), statistic, degrees, p_value)


def _common_prefix(a, b):
    for x, y in zip(a, b, strict=False):
        if x != y:
            return
        yield x
