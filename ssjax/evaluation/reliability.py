"""Whether the chances that draft trees are made of are true, and temperatures that make them so.

A node's chance is the product of the probabilities on its path. It is true where, of all nodes with
a chance of about p, a share of p is kept. What streams say of outputs that are known tells, and a
temperature for each depth mends what is said too loudly or too softly: the one under which the
tokens that came were likeliest. Half of the prompts are fitted to and the other half is reported.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.candidates import Candidates, log_outside
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter
from ssjax.evaluation.replay import UNKNOWN, Tokens, Trace, predict, replay

# Narrow where most nodes are: a tree has few likely ones.
EDGES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
_LOWEST, _HIGHEST = 0.25, 4.0  # temperatures that are looked at
_STEPS = 24  # of golden section: log T to 3e-5
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Bin:
    """Nodes of about the same chance."""

    low: float
    high: float
    predicted: float  # mean chance
    kept: float  # share that was kept
    nodes: int


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Chances against what came of them."""

    bins: tuple[Bin, ...]  # rising; those without nodes left out

    @property
    def error(self) -> float:
        """Expected calibration error: distance of predicted and kept, over all nodes alike."""
        nodes = sum(each.nodes for each in self.bins)
        return sum(abs(b.predicted - b.kept) * b.nodes for b in self.bins) / max(nodes, 1)


@dataclasses.dataclass(frozen=True)
class Chances:
    """The chances of a run's draft nodes."""

    temperatures: tuple[float, ...]  # fitted, by stream
    plain: Reliability  # on the prompts that were not fitted to, at temperature 1
    fitted: Reliability  # on the same
    # Mean log-likelihood that the temperatures add to a token on those prompts, in nats.
    gain: float
    tokens_per_call: tuple[float, float]  # on the same, of the trees without and with them

    @property
    def used(self) -> tuple[float, ...]:
        """The temperatures, if they help prompts that were not fitted to, else none.

        What came must be likelier under them, and trees must not hold less of it: truer chances of
        single tokens need not make better trees.
        """
        plain, fitted = self.tokens_per_call
        return self.temperatures if self.gain > 0 and fitted >= plain else ()


def measure_chances(
    decoder: Decoder,
    prompts: Sequence[Tokens],
    outputs: Sequence[Tokens],
    traces: Sequence[Trace],
    drafter: BestFirstDrafter,
) -> Chances:
    """Fits temperatures to every second output and looks at the nodes of the others.

    Args:
      decoder, prompts, outputs: as for `replay`.
      traces: of the outputs.
      drafter: whose nodes are looked at, at temperature 1.
    """
    to_fit, to_report = halves(traces)
    temperatures = fit_temperatures(to_fit)
    both = (drafter, dataclasses.replace(drafter, temperatures=temperatures))
    _, reported = halves(replay(decoder, prompts, outputs, both, both))
    plain, fitted = (reliability(reported, index) for index in range(2))
    tokens = tuple(predict(reported, index).tokens_per_call for index in range(2))
    return Chances(temperatures, plain, fitted, gain_of(to_report, temperatures), tokens)


def halves(traces: Sequence[Trace]) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Those to fit to and those to report, every second; one trace alone is both."""
    return traces[::2], traces[1::2] or traces


def reliability(traces: Sequence[Trace], judged: int) -> Reliability:
    """Of the nodes of one judged drafter, by its index."""
    chances = [np.exp(np.ravel(trace.nodes[judged].log_chances)) for trace in traces]
    kept = [np.ravel(trace.nodes[judged].kept) for trace in traces]
    return binned(np.concatenate(chances), np.concatenate(kept))


def binned(chances: np.ndarray, kept: np.ndarray) -> Reliability:
    """Reliability of some nodes.

    Args:
      chances: [n], 0 for nodes that do not exist.
      kept: [n], 1, 0 or UNKNOWN.
    """
    known = (kept != UNKNOWN) & (chances > 0)
    chances, kept = chances[known].astype(np.float64), kept[known]
    place = np.clip(np.searchsorted(EDGES, chances, side="right") - 1, 0, len(EDGES) - 2)
    bins = []
    for number, (low, high) in enumerate(zip(EDGES[:-1], EDGES[1:], strict=True)):
        own = place == number
        if own.any():
            bins.append(
                Bin(low, high, float(chances[own].mean()), float(kept[own].mean()), int(own.sum()))
            )
    return Reliability(tuple(bins))


def fit_temperatures(traces: Sequence[Trace]) -> tuple[float, ...]:
    """The temperature of each stream under which the tokens that came are likeliest.

    The loss is convex in 1 / T, so golden section finds it; all streams at once. A stream of which
    no token is known keeps 1.
    """
    loss, known = _losses(traces)
    low = np.full(known.shape, math.log(_LOWEST))
    high = np.full(known.shape, math.log(_HIGHEST))
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        lower = loss(np.exp(left)) < loss(np.exp(right))
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    found = np.where(known > 0, np.exp((low + high) / 2), 1.0)
    return tuple(round(float(each), 4) for each in found)


def gain_of(traces: Sequence[Trace], temperatures: Sequence[float]) -> float:
    """Mean log-likelihood that temperatures add to a token, in nats."""
    loss, known = _losses(traces)
    gained = loss(np.ones(len(known))) - loss(np.array(temperatures))
    return float((gained * known).sum() / max(known.sum(), 1))


def _losses(traces):
    """A function from temperatures [J] to mean negative log-likelihoods [J], and [J] counts."""
    scores = np.concatenate([trace.events.scores for trace in traces])
    places = np.concatenate([trace.events.places for trace in traces])
    known = (places != UNKNOWN).sum(axis=0)

    def loss(temperatures):
        total = _total_loss(jnp.asarray(temperatures, jnp.float32), scores, places)
        return np.asarray(total, np.float64) / np.maximum(known, 1)

    return loss, known


@jax.jit
def _total_loss(temperatures, scores, places):
    table = Candidates(jnp.zeros(scores.shape, jnp.int32), scores[:, :, None])
    own = table.tempered(temperatures).scores[:, :, 0]
    events = jnp.concatenate([own, log_outside(own)[..., None]], axis=-1)
    log_likelihood = jnp.take_along_axis(events, jnp.maximum(places, 0)[..., None], axis=-1)[..., 0]
    # A token that is impossible to float32 is so at every temperature.
    return -jnp.where(places == UNKNOWN, 0.0, jnp.maximum(log_likelihood, -30.0)).sum(axis=0)
