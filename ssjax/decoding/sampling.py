"""How the next token is drawn from logits: greedy, or sampled; penalties, bans and cuts.

The order, the same in plain and in speculative decoding because it is the same code:

    adjust   repetition penalty, presence penalty, banned tokens, end of sequence too early
    warp     temperature, top-k, top-p, min-p; not when greedy
    draw     argmax, with noise unless greedy; nothing where the model's logits are not all finite

Penalties look at the tokens before the one to be drawn. After a draft node those are the
tokens of its row and the tokens on its path, as if the path were already accepted; so a node's
distribution is the one that plain decoding has after the same tokens.

Sampling uses the Gumbel trick: the drawn token is argmax(log p + g) with g fixed by the
row's key and the *position* of the token. Two consequences. The draw is an exact sample of
the warped distribution. And plain and speculative decoding of one row see the same g at the
same position, so they draw the same tokens, not only the same distribution: a sampled
speculative output can be compared with the plain one token for token.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssjax.config import DecodeConfig
from ssjax.decoding.tree import NO_TOKEN, DraftTree, path_tokens
from ssjax.models.attention import MASKED
from ssjax.parallel.partitioning import top_k

# As many of the best as the TPU's compiler finds with its kernel. For more it sorts the vocabulary,
# which compiles for minutes.
_MOST_RANKED = 256
_REFUSED = 2 * MASKED


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The target distribution. What is off, as by default, is not part of the program."""

    temperature: float = 0.0  # 0: greedy, the lowest id among equals
    # Of what temperature leaves, not when greedy. Applied in this order.
    top_k: int = 0  # keep the k best tokens, ties included; 0: all
    top_p: float = 1.0  # keep the smallest set of best tokens with this mass; 1: all
    min_p: float = 0.0  # keep tokens with at least this share of the largest probability; 0: all
    # Of the model's logits, before temperature and also when greedy. Applied in this order.
    # Logits of tokens in prompt or output are divided by it if positive, else multiplied; 1: off.
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # subtracted once from logits of tokens in the output; 0: off
    banned_tokens: tuple[int, ...] = ()  # ids that are never drawn
    min_new_tokens: int = 0  # no end-of-sequence id is drawn before so many tokens


def make_sampling(decode: DecodeConfig) -> Sampling:
    """The target distribution that a config asks for: its fields of the same names."""
    names = [field.name for field in dataclasses.fields(Sampling)]
    return Sampling(**{name: getattr(decode, name) for name in names})


@struct.dataclass
class History:
    """What `adjust` must know of each row; a field that no setting asks for is None."""

    prompt_length: jax.Array | None  # [B] int32
    in_prompt: jax.Array | None  # [B, V] bool, the token occurs in the prompt
    in_output: jax.Array | None  # [B, V] bool, the token has been emitted


def start_history(
    sampling: Sampling, prompts: jax.Array, prompt_length: jax.Array, vocab_size: int
) -> History:
    """The history before the first token.

    Args:
      sampling: says which fields are needed.
      prompts: [B, T] int32, padded on the right.
      prompt_length: [B] int32.
      vocab_size: V.
    """
    in_prompt = in_output = None
    if sampling.repetition_penalty != 1 or sampling.presence_penalty != 0:
        in_output = jnp.zeros((prompts.shape[0], vocab_size), bool)
    if sampling.repetition_penalty != 1:
        inside = jnp.arange(prompts.shape[1]) < prompt_length[:, None]
        in_prompt = _with_tokens(jnp.zeros_like(in_output), prompts, inside)
    first = prompt_length if sampling.min_new_tokens > 0 else None
    return History(first, in_prompt, in_output)


def extend_history(history: History, tokens: jax.Array, emitted: jax.Array) -> History:
    """The history after a pass.

    Args:
      history: before it.
      tokens: [B, R] int32.
      emitted: [B, R] bool, which of them became part of the output.
    """
    if history.in_output is None:
        return history
    return history.replace(in_output=_with_tokens(history.in_output, tokens, emitted))


def adjust(
    logits: jax.Array,
    sampling: Sampling,
    history: History,
    tree: DraftTree,
    length: jax.Array,
    eos_ids: tuple[int, ...],
    max_depth: int,
) -> jax.Array:
    """Applies penalties and bans after every node; banned tokens get MASKED.

    Args:
      logits: [B, M, V] float32, the model's own.
      sampling: which penalties and bans.
      history: of the rows' tokens, the root of the tree included.
      tree: M nodes; each counts the draft tokens on its own path as output.
      length: [B] int32, tokens of each row up to the root.
      eos_ids: ids that end a row.
      max_depth: R - 1.
    """
    vocab_size = logits.shape[-1]
    if history.in_output is not None:
        vocab = jnp.arange(vocab_size)
        in_output = history.in_output[:, None, :]
        on_path = path_tokens(tree, max_depth)
        for ancestor in range(max_depth):  # R - 1 comparisons that fuse, not a [B, M, M, V] mask
            in_output = in_output | (on_path[:, :, ancestor, None] == vocab)
        if history.in_prompt is not None:
            penalty = sampling.repetition_penalty
            penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
            seen = in_output | history.in_prompt[:, None, :]
            logits = jnp.where(seen, penalised, logits)
        if sampling.presence_penalty != 0:
            logits = logits - sampling.presence_penalty * in_output
    if sampling.banned_tokens:
        logits = jnp.where(_one_of(sampling.banned_tokens, vocab_size), MASKED, logits)
    if sampling.min_new_tokens > 0:
        num_before = (length - history.prompt_length)[:, None] + tree.depth  # [B, M]
        too_early = (num_before < sampling.min_new_tokens)[:, :, None]
        logits = jnp.where(too_early & _one_of(eos_ids, vocab_size), MASKED, logits)
    return logits


def only_allowed(adjusted: jax.Array, allowed: jax.Array) -> jax.Array:
    """Adjusted logits with all tokens refused that a mask leaves out.

    They are below the banned ones: where all that is allowed is banned, one of those is drawn.

    Args:
      adjusted: [B, M, V] float32.
      allowed: [B, M, ceil(V / 32)] int32, a bit for each token, the lowest first.
    """
    bits = (allowed[..., None] >> jnp.arange(32)) & 1
    bits = bits.reshape(*allowed.shape[:-1], -1)[..., : adjusted.shape[-1]]
    return jnp.where(bits != 0, adjusted, _REFUSED)


def warp(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Applies temperature, top-k, top-p and min-p; removed tokens get MASKED.

    Args:
      logits: [..., V] float32, adjusted.
      sampling: temperature above 0.
    """
    logits = logits / sampling.temperature
    vocab_size = logits.shape[-1]
    cuts_rank = 0 < sampling.top_k < vocab_size
    if cuts_rank or sampling.top_p < 1.0:
        best = best_logits(logits)
    if cuts_rank:
        logits, best = cut_by_rank(logits, best, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = cut_by_mass(logits, best, sampling.top_p)
    if sampling.min_p > 0:
        lowest_kept = logits.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < lowest_kept, MASKED, logits)
    return logits


def best_logits(logits: jax.Array) -> jax.Array:
    """The best of each row, falling, [..., W] of [..., V]; W is 256, or V if that is less."""
    return top_k(logits, min(_MOST_RANKED, logits.shape[-1]))[0]


def cut_by_rank(
    logits: jax.Array, best: jax.Array, rank: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masks what is below the logit of a rank; equals of that stay.

    Args:
      logits: [..., V] float32.
      best: of `best_logits`.
      rank: k, 1 to V; a number, or an array [..., 1] int32.

    Returns:
      Both, masked.
    """
    width = best.shape[-1]

    def found_by_halving():
        return _lowest_below(logits, jnp.ones_like(logits), rank)

    if isinstance(rank, int):
        lowest = best[..., rank - 1 : rank] if rank <= width else found_by_halving()
    else:
        lowest = jnp.take_along_axis(best, jnp.minimum(rank, width) - 1, axis=-1)
        beyond = rank > width
        lowest = jax.lax.cond(
            beyond.any(), lambda: jnp.where(beyond, found_by_halving(), lowest), lambda: lowest
        )
    return tuple(jnp.where(x < lowest, MASKED, x) for x in (logits, best))


def cut_by_mass(logits: jax.Array, best: jax.Array, mass: float | jax.Array) -> jax.Array:
    """Masks all but the fewest best tokens that have so much of the probability.

    Read off the best where those have that much, which is nearly always: then nobody asks for the
    order of the others. What a row gets does not depend on the rows beside it.

    Args:
      logits: [..., V] float32.
      best: of `best_logits`, or masked with them by `cut_by_rank`.
      mass: below 1; a number, or an array [..., 1].
    """
    peak = best[..., :1]
    norm = jnp.exp(logits - peak).sum(axis=-1, keepdims=True)
    shares = jnp.exp(best - peak) / norm
    held = jnp.cumsum(shares, axis=-1)
    lowest = jnp.where(held - shares < mass, best, jnp.inf).min(axis=-1, keepdims=True)
    if best.shape[-1] < logits.shape[-1]:
        is_held = held[..., -1:] >= mass

        def search():
            found = _lowest_below(logits, jnp.exp(logits - peak), mass * norm)
            return jnp.where(is_held, lowest, found)

        lowest = jax.lax.cond(is_held.all(), lambda: lowest, search)
    return jnp.where(logits < lowest, MASKED, logits)


def position_noise(row_keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """Gumbel noise of each (row, position), [B, R, V] float32.

    Args:
      row_keys: [B] typed keys.
      positions: [B, R] int32, positions of the tokens to be drawn.
      vocab_size: V.
    """

    def noise(key, position):
        return jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,), jnp.float32)

    return jax.vmap(jax.vmap(noise, in_axes=(None, 0)))(row_keys, positions)


def draw(
    adjusted: jax.Array,
    logits: jax.Array,
    depth: jax.Array,
    noise: jax.Array | None,
    sampling: Sampling,
) -> jax.Array:
    """Draws the next token after every node, [B, M] int32.

    Args:
      adjusted: [B, M, V] float32.
      logits: [B, M, V] float32, the model's own; NO_TOKEN is drawn where one is not finite.
      depth: [B, M] int32, which position after the root each node's next token has.
      noise: [B, R, V] float32 from `position_noise`; None exactly when greedy.
      sampling: the target distribution.
    """
    finite = jnp.isfinite(logits)
    if sampling.temperature == 0:
        return first_argmax(adjusted, finite)
    noise_BMV = jnp.take_along_axis(noise, depth[:, :, None], axis=1)
    return first_argmax(warp(adjusted, sampling) + noise_BMV, finite)


def first_argmax(x: jax.Array, usable: jax.Array | bool = True) -> jax.Array:
    """Index of the largest entry on the last axis, the lowest among equals; int32.

    Two vector reductions; `jnp.argmax` runs entry by entry on CPU, 47 us against 11 us for
    9 x 1024. So `usable` costs nothing there, 30 % more if it were reduced by itself.

    Args:
      x: [..., V].
      usable: [..., V] bool; where an entry is not, NO_TOKEN is returned in place of an index.
    """
    size = x.shape[-1]
    is_peak = x == x.max(axis=-1, keepdims=True)
    index = jnp.where(is_peak, jnp.arange(size, dtype=jnp.int32), size - 1)
    return jnp.where(usable, index, NO_TOKEN).min(axis=-1)


def _lowest_below(logits, weights, budget):
    """The lowest logit with less than a budget of weight above it, [..., 1].

    By halving the range of 32-bit numbers 32 times: exact, and no sort, which compiles for minutes
    on TPU.

    Args:
      logits, weights: [..., V] float32, weights not negative.
      budget: a number, or [..., 1].
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)  # rises with the logits

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # rounded down; the sum could overflow
        above = jnp.where(order > middle, weights, 0).sum(axis=-1, keepdims=True)
        fits = above < budget
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    bounds = jnp.iinfo(jnp.int32)
    low, high = (jnp.full_like(order[..., :1], bound) for bound in (bounds.min, bounds.max))
    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(order >= low, logits, jnp.inf).min(axis=-1, keepdims=True)


def _with_tokens(sets, tokens, counted):
    """Adds tokens [B, T], where `counted`, to sets of tokens [B, V]."""
    slot = jnp.where(counted, tokens, sets.shape[1])  # past the end: dropped

    @jax.vmap  # no row writes into another's, which the compiler then knows
    def add(row, slot):
        return row.at[slot].set(True, mode="drop")

    return add(sets, slot)


def _one_of(ids, vocab_size):
    """[V] bool, a constant of the program; ids outside of the vocabulary are none of it."""
    return np.isin(np.arange(vocab_size), ids)
