"""The whole transformer against a second, written-out NumPy forward pass in float64.

No segments and no log-sum-exp here: main and stream rows are concatenated and attend under one
explicit (T + A*J) x (T + A*J) mask, with keys and values repeated for each query head.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.config import ModelConfig, StreamsConfig
from ssjax.models.parameters import unstack_layers
from ssjax.models.transformer import Transformer, causal_mask

TOLERANCE = 1e-4  # float32 against float64; hidden states of size 1, logits of size 10
LEAK = 1e-2  # a wrong mask moves hidden states by more than this
WIDTH, J = 6, 3
LENGTHS = (6, 2, 4)
ANCHORS = ((0, 3, 5), (1, 0, 1), (3, 2, 0))  # unordered and repeated, inside each row

CASES = {
    "gqa-tied": dict(num_kv_heads=2, tie_embeddings=True, num_stream_layers=2),
    "gqa-untied": dict(num_kv_heads=2, tie_embeddings=False, num_stream_layers=1),
    "mha-tied": dict(num_kv_heads=4, tie_embeddings=True, num_stream_layers=3),  # no trunk
    "mha-untied": dict(num_kv_heads=4, tie_embeddings=False, num_stream_layers=2),
}


def make_model(num_kv_heads, tie_embeddings, num_stream_layers):
    config = ModelConfig(
        vocab_size=17,
        embed_dim=16,
        num_layers=3,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=6,
        mlp_dim=20,
        rope_theta=300.0,
        norm_epsilon=1e-3,
        tie_embeddings=tie_embeddings,
    )
    return Transformer(config, StreamsConfig(J, num_stream_layers), scan=True)


def random_params(model, seed):
    """Scanned parameters from NumPy: projections three times wider than at initialisation."""
    rng = np.random.default_rng(seed)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        functools.partial(model.init, num_streams=0),
        jax.random.key(0), tokens, tokens, jax.ShapeDtypeStruct((1, 2, 2), bool),
    )["params"]  # fmt: skip

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key != "weight":  # tables
            return noise
        if path[-2].key.endswith("_proj"):
            return 3.0 * noise / np.sqrt(leaf.shape[-1])
        return 1.0 + 0.3 * noise

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)


def full_mask(num_main, anchors, num_streams):
    """[X, X] bool over main rows, then the streams of each anchor."""
    size = num_main + len(anchors) * num_streams
    mask = np.zeros((size, size), bool)
    mask[:num_main, :num_main] = np.tri(num_main, dtype=bool)
    for a, t in enumerate(anchors):
        start = num_main + a * num_streams
        for j in range(num_streams):
            mask[start + j, : t + 1] = True
            mask[start + j, start : start + j + 1] = True
    return mask


def oracle(params, config, tokens, anchors, num_streams, mask=None):
    """Hidden states (main [T, D], streams [A, J, D]) and logits of one sequence, float64."""
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), unstack_layers(params))
    num_main, anchors = len(tokens), np.asarray(anchors)
    mask = full_mask(num_main, anchors, num_streams) if mask is None else mask
    stream_positions = (anchors[:, None] + np.arange(1, num_streams + 1)).ravel()
    positions = np.concatenate([np.arange(num_main), stream_positions])

    def norm(x, weight):
        return weight * x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + config.norm_epsilon)

    def turn(x, at):  # [N, X, H]: pair (i, i + H/2) turned by at * theta^(-2i/H)
        half = config.head_dim // 2
        out = np.empty_like(x)
        for i in range(half):
            angle = at * config.rope_theta ** (-2 * i / config.head_dim)
            low, high = x[..., i], x[..., i + half]
            out[..., i] = np.cos(angle) * low - np.sin(angle) * high
            out[..., i + half] = np.sin(angle) * low + np.cos(angle) * high
        return out

    def split_heads(x):
        x = x.reshape(len(x), -1, config.head_dim).transpose(1, 0, 2)
        return np.repeat(x, config.num_heads // len(x), axis=0)  # [N, X, H]

    def layer(w, x):
        rows = len(x)
        normed = norm(x, w["attention_norm"]["weight"])
        q, k, v = (split_heads(normed @ w["attention"][f"{n}_proj"]["weight"].T) for n in "qkv")
        q, k = turn(q, positions[:rows]), turn(k, positions[:rows])
        scores = np.einsum("nqh,nkh->nqk", q, k) / np.sqrt(config.head_dim)
        exp = np.where(mask[:rows, :rows], np.exp(scores - scores.max(-1, keepdims=True)), 0)
        mixed = np.einsum("nqk,nkh->qnh", exp / exp.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(rows, -1) @ w["attention"]["o_proj"]["weight"].T
        normed = norm(x, w["mlp_norm"]["weight"])
        gate, up = (normed @ w["mlp"][f"{n}_proj"]["weight"].T for n in ("gate", "up"))
        gated = gate * up / (1 + np.exp(-gate))
        return x + gated @ w["mlp"]["down_proj"]["weight"].T

    x = weights["embedder"][np.asarray(tokens)]
    num_trunk = config.num_layers - len(weights["stream_layers"])
    for i in range(num_trunk):
        x = layer(weights["trunk"][f"layers_{i}"], x)
    streams = x[anchors][:, None] + weights["stream_embedding"][:num_streams]
    x = np.concatenate([x, streams.reshape(-1, x.shape[1])])
    for i in range(len(weights["stream_layers"])):
        x = layer(weights["stream_layers"][f"layers_{i}"], x)
    hidden = norm(x, weights["final_norm"]["weight"])
    logits = hidden @ weights["embedder" if config.tie_embeddings else "lm_head"].T
    shape = (len(anchors), num_streams, -1)
    return (
        hidden[:num_main], hidden[num_main:].reshape(shape),
        logits[:num_main], logits[num_main:].reshape(shape),
    )  # fmt: skip


def padded_tokens():
    return np.random.default_rng(3).integers(0, 17, (len(LENGTHS), WIDTH)).astype(np.int32)


@functools.cache
def product(case):
    """(model, params, the four arrays of the oracle for the padded batch)."""
    model = make_model(**CASES[case])
    params = random_params(model, seed=7)

    @jax.jit
    def run(params, tokens, anchors):
        positions = jnp.broadcast_to(jnp.arange(WIDTH), tokens.shape)
        bound = model.bind({"params": params})
        output = bound(tokens, positions, causal_mask(WIDTH), anchors=anchors, num_streams=J)
        states = (output.hidden, output.stream_hidden)
        return *states, *map(bound.logits, states)

    outputs = run(params, jnp.asarray(padded_tokens()), jnp.asarray(ANCHORS))
    return model, params, [np.asarray(x) for x in outputs]


@pytest.mark.parametrize("case", CASES)
def test_equals_numpy(case):
    model, params, outputs = product(case)
    assert ("lm_head" in params) != model.config.tie_embeddings
    for b, (tokens, length) in enumerate(zip(padded_tokens(), LENGTHS, strict=True)):
        expected = oracle(params, model.config, tokens[:length], ANCHORS[b], J)
        cut = [outputs[0][b, :length], outputs[1][b], outputs[2][b, :length], outputs[3][b]]
        for got, want in zip(cut, expected, strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("leak", ["stream sees the next token", "stream sees a later stream"])
def test_a_wrong_mask_would_be_seen(leak):
    """One wrong bit of the mask moves what the test above compares, far beyond its tolerance."""
    model, params, outputs = product("gqa-tied")
    tokens, anchors = padded_tokens()[0], ANCHORS[0]
    mask = full_mask(WIDTH, anchors, J)
    mask[WIDTH, 1 if "token" in leak else WIDTH + 1] = True  # stream 1 of the anchor at 0
    wrong = oracle(params, model.config, tokens, anchors, J, mask)[1]
    assert np.abs(wrong[0, 0] - outputs[1][0, 0, 0]).max() > LEAK
    np.testing.assert_allclose(wrong[1:], outputs[1][0, 1:], atol=TOLERANCE, rtol=0)


def test_logits_are_float32_and_the_argmax_is_far_from_ties():
    """The margins that the decoding tests rely on exist for wide random weights."""
    _, _, outputs = product("gqa-tied")
    assert outputs[2].dtype == outputs[3].dtype == np.float32
    top = np.sort(np.concatenate([outputs[2].reshape(-1, 17), outputs[3].reshape(-1, 17)]), axis=1)
    assert np.median(top[:, -1] - top[:, -2]) > LEAK
