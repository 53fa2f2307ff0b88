"""LoRA: which rows it touches, what it is folded into, what gradients reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from oracles import LOGIT_TOLERANCE

from ssjax.config import AdaptationConfig, LossConfig
from ssjax.models.lora import (
    is_lora,
    is_new,
    merge_lora,
    merged_adaptation,
    split_trainable,
)
from ssjax.models.parameters import fingerprint, flatten, has_fingerprint, merge, split, unflatten
from ssjax.models.transformer import abstract_params, init_params
from ssjax.training.description import parameter_line
from ssjax.training.optimizer import make_optimizer
from ssjax.training.step import init_state, make_train_step

LOSSLESS = AdaptationConfig(mode="lossless", rank=2, alpha=6.0)
SHARED = dataclasses.replace(LOSSLESS, mode="shared")
DETACHED = dataclasses.replace(LOSSLESS, mode="detached")
FULL = AdaptationConfig()
TOKENS = np.random.default_rng(3).integers(0, 13, (3, 7))
ANCHORS = np.tile([2, 4, 5], (3, 1))


def adapted(adaptation, **changes):
    """A model with random LoRA, its parameters, and those of its base alone."""
    model = oracles.make_model(adaptation=adaptation, **changes)
    params = oracles.random_params(model, seed=5)
    base, _ = split(params, lambda path: not is_lora(path))
    return model, params, base


def logits(model, params, num_streams=3):
    output = oracles.run_model(
        model, params, TOKENS, anchors=jnp.asarray(ANCHORS), num_streams=num_streams
    )
    streams = oracles.logits_of(model, params, output.stream_hidden)
    return oracles.logits_of(model, params, output.hidden), streams


def folded_by_hand(params, adaptation, adapters=("lora", "stream_lora")):
    """NumPy: the updates of some adapters added to the weights; all adapters are taken out."""
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(params).items()}
    scale = adaptation.alpha / adaptation.rank
    for name in [name for name in leaves if name.endswith("lora_a")]:
        home, _, adapter = name.removesuffix("_a").rpartition("/")
        a, b = leaves.pop(name), leaves.pop(f"{home}/{adapter}_b")
        if adapter in adapters:
            leaves[f"{home}/weight"] += scale * np.einsum("lor,lri->loi", b, a)
    return unflatten(leaves)


def test_shared_is_the_base_with_updated_weights():
    """Main and stream logits against the float64 oracle with the folded weights."""
    model, params, _ = adapted(SHARED)
    main, streams = logits(model, params)
    whole = folded_by_hand(params, SHARED)
    for row in range(3):
        expected = oracles.forward(whole, model.config, TOKENS[row], ANCHORS[row], 3)
        np.testing.assert_allclose(main[row], expected[0], atol=LOGIT_TOLERANCE, rtol=0)
        np.testing.assert_allclose(streams[row], expected[1], atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("adaptation", [SHARED, DETACHED], ids=["shared", "detached"])
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_merged_equals_unmerged(adaptation, scan):
    """Main and stream rows; of the detached mode a lossless model over the fine-tune is left."""
    model, params, base = adapted(adaptation)
    if not scan:
        model = model.clone(scan=False)
        params, base = oracles.unstack_layers(params), oracles.unstack_layers(base)
    plain = model.clone(adaptation=merged_adaptation(adaptation))
    merged = merge_lora(params, adaptation)
    shapes = jax.tree.map(lambda x: x.shape, flatten(merged))
    assert shapes == jax.tree.map(lambda x: x.shape, flatten(abstract_params(plain)))
    for ours, expected in zip(logits(plain, merged), logits(model, params), strict=True):
        np.testing.assert_allclose(ours, expected, atol=LOGIT_TOLERANCE, rtol=0)
    untouched = logits(model.clone(adaptation=FULL), base)
    assert np.abs(untouched[0] - logits(model, params)[0]).max() > 0.1


@pytest.mark.parametrize(
    ("scan", "changes"),
    [
        (True, {}),
        (False, {}),
        (True, {"variation": "rotation", "rotation_length": 1, "init_rank": 2}),
    ],
    ids=["scanned", "unrolled", "rotated-mapped"],
)
def test_lossless_main_is_the_base_bit_for_bit(scan, changes):
    """Same shapes, any adapter: no main logit and no main key or value changes by a bit."""
    model, params, base = adapted(LOSSLESS, **changes)
    other = oracles.random_params(model, seed=6)
    other = merge(split(other, is_lora)[0], base)
    if not scan:
        model = model.clone(scan=False)
        params, other, base = (oracles.unstack_layers(p) for p in (params, other, base))
    untrained = merge(jax.tree.map(jnp.zeros_like, split(params, is_lora)[0]), base)
    main, streams = logits(model, params)
    for same in (untrained, other):
        again = logits(model, same)
        np.testing.assert_array_equal(again[0], main)
        assert np.abs(again[1] - streams).max() > 0.1
    np.testing.assert_array_equal(logits(model.clone(adaptation=FULL), base)[0], main)


@pytest.mark.parametrize(
    ("adaptation", "of_main"), [(LOSSLESS, ()), (DETACHED, ("lora",))], ids=["lossless", "detached"]
)
def test_streams_run_on_updated_weights(adaptation, of_main):
    """A stream row in one stream layer: keys of main rows by their weights, else its own ones."""
    model, params, _ = adapted(adaptation, num_stream_layers=1)
    old = folded_by_hand(params, adaptation, of_main)
    whole = folded_by_hand(params, adaptation)
    main, streams = logits(model, params)
    for row in range(3):
        expected = oracles.forward(old, model.config, TOKENS[row])[0]
        np.testing.assert_allclose(main[row], expected, atol=LOGIT_TOLERANCE, rtol=0)
        expected = two_weights_forward(old, whole, model.config, TOKENS[row], ANCHORS[row])
        np.testing.assert_allclose(streams[row], expected, atol=LOGIT_TOLERANCE, rtol=0)


def two_weights_forward(base, updated, config, tokens, anchors):
    """Stream logits where main rows use one set of weights and streams another; NumPy.

    With one stream layer: main keys and values come from the base layer, the rows of the
    streams from the updated one.
    """
    base, updated = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), oracles.unstack_layers(p))
        for p in (base, updated)
    )
    x = base["embedder"][tokens]
    visible = np.tril(np.ones((len(tokens),) * 2, bool))
    places = list(range(len(tokens)))
    for i in range(len(base["trunk"])):
        x = oracles._layer(base["trunk"][f"layers_{i}"], config, x, places, visible)
    old, new = base["stream_layers"]["layers_0"], updated["stream_layers"]["layers_0"]
    results = []
    for t in anchors:
        rows = [x[t] + base["stream_embedding"][j] for j in range(3)]
        results.append(stream_rows(old, new, config, x[: t + 1], np.stack(rows), t))
    hidden = oracles._norm(np.stack(results), base["final_norm"]["weight"], config.norm_epsilon)
    return hidden @ base["embedder"].T


def stream_rows(old, new, config, main, rows, t):
    """One layer over the streams of one anchor."""

    def heads(weights, normed, name, positions):
        y = normed @ weights["attention"][f"{name}_proj"]["weight"].T
        y = y.reshape(len(normed), -1, config.head_dim)
        if name == "v":
            return y
        turned = [oracles.rotate(y[:, n], positions, config.rope_theta) for n in range(y.shape[1])]
        return np.stack(turned, axis=1)

    epsilon = config.norm_epsilon
    normed_main = oracles._norm(main, old["attention_norm"]["weight"], epsilon)
    normed = oracles._norm(rows, new["attention_norm"]["weight"], epsilon)
    own = [t + j for j in (1, 2, 3)]
    keys, values = (
        np.concatenate([heads(old, normed_main, name, range(t + 1)), heads(new, normed, name, own)])
        for name in "kv"
    )
    queries = heads(new, normed, "q", own)
    per_kv = config.num_heads // config.num_kv_heads
    seen = np.concatenate([np.ones((3, t + 1), bool), np.tril(np.ones((3, 3), bool))], axis=1)
    attended = []
    for n in range(config.num_heads):
        scores = queries[:, n] @ keys[:, n // per_kv].T / np.sqrt(config.head_dim)
        weight = np.exp(oracles.log_softmax(np.where(seen, scores, -1e30)))
        attended.append(weight @ values[:, n // per_kv])
    x = rows + np.concatenate(attended, axis=1) @ new["attention"]["o_proj"]["weight"].T
    normed = oracles._norm(x, new["mlp_norm"]["weight"], epsilon)
    mlp = {name: new["mlp"][f"{name}_proj"]["weight"] for name in ("gate", "up", "down")}
    gate = normed @ mlp["gate"].T
    return x + (gate / (1 + np.exp(-gate)) * (normed @ mlp["up"].T)) @ mlp["down"].T


def one_step(model, params, adaptation, main_weight):
    trainable, frozen = split_trainable(params, adaptation)
    optimizer = make_optimizer(oracles.OptimizerConfig(learning_rate=1e-2, warmup_steps=1), 5)
    step = make_train_step(
        model, optimizer, LossConfig(main_weight, 1.0), num_anchors=4, accumulation=1
    )
    batch = oracles.batch_of(TOKENS, [3, 2, 3], [7, 6, 5])
    state = init_state(trainable, optimizer)
    jitted = jax.jit(step)
    for _ in range(2):  # the learning rate of the first step is 0
        state, metrics = jitted(state, frozen, batch)
    return trainable, frozen, state, metrics


@pytest.mark.parametrize(
    ("adaptation", "main_weight"), [(SHARED, 1.0), (LOSSLESS, 0.0), (FULL, 1.0), (DETACHED, 1.0)]
)
def test_gradients_reach_exactly_the_trainable_leaves(adaptation, main_weight):
    model, params, _ = adapted(adaptation, exit_rank=2, init_rank=2)
    before = fingerprint(split_trainable(params, adaptation)[1])
    trainable, frozen, state, _ = one_step(model, params, adaptation, main_weight)
    names = set(flatten(trainable))
    if adaptation.mode == "full":
        assert names == set(flatten(params)) and frozen == {}
    else:
        assert names == {n for n in flatten(params) if is_new(tuple(n.split("/")))}
        lossless = adaptation.mode == "lossless"
        assert any(n.startswith("trunk") for n in names) != lossless
    after = flatten(state.params)
    for name, leaf in flatten(trainable).items():
        assert np.abs(after[name] - leaf).max() > 0, f"{name} did not move"
    assert fingerprint(frozen) == before
    # Moments exist for the trained leaves alone.
    moments = state.opt_state[1][0].mu
    assert set(flatten(moments)) == names


@pytest.mark.parametrize(("width", "extra"), [(4096, 81_920), (2048, 40_960)])
def test_the_method_adds_as_many_parameters_as_the_paper_says(width, extra):
    """Table 1: 8.19e4 for 7B, 4.1e4 for 1.3B; 4 stream embeddings and a rank-8 exit adapter."""
    model = oracles.make_model(
        num_streams=4,
        embed_dim=width,
        exit_rank=8,
        num_layers=4,
        num_stream_layers=4,
        adaptation=SHARED,
    )
    params = abstract_params(model)
    new = flatten(split(params, lambda path: is_new(path) and not is_lora(path))[0])
    assert sum(leaf.size for leaf in new.values()) == extra
    line = parameter_line(model, *split_trainable(params, SHARED))
    assert f"Speculative Streaming {extra:,} (4 stream embeddings {4 * width:,}" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_rank": 2}, "168 (3 stream embeddings 72, map to their start 96, early-exit"),
        ({"variation": "rotation"}, "0 (3 rotated streams 0, early-exit adapter 0); LoRA"),
    ],
    ids=["map", "rotation"],
)
def test_what_variants_add_is_said(changes, said):
    model = oracles.make_model(adaptation=SHARED, **changes)
    line = parameter_line(model, *split_trainable(abstract_params(model), SHARED))
    assert f"Speculative Streaming {said}" in line


def test_untrained_adapters_change_nothing():
    """lora_b and stream_init_up start at zero."""
    model = oracles.make_model(adaptation=SHARED, init_rank=2)
    params = jax.jit(lambda: init_params(model, 0))()
    base, _ = split(params, lambda path: not is_lora(path) and "stream_init" not in path[0])
    plain = oracles.make_model(adaptation=FULL)
    ours, plain = logits(model, params), logits(plain, base)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_is_a_function_of_the_step():
    """No key is kept: the same state gives the same update, the next step drops others."""
    adaptation = dataclasses.replace(SHARED, dropout=0.5, targets=("q_proj",))
    model, params, _ = adapted(adaptation, num_layers=2)
    trainable, frozen = split_trainable(params, adaptation)
    step = make_train_step(
        model, optax.sgd(1.0), LossConfig(), num_anchors=4, accumulation=1, seed=1
    )
    step = jax.jit(step)
    state = init_state(trainable, optax.sgd(1.0))
    batch = oracles.batch_of(TOKENS, [3, 2, 3], [7, 6, 5])

    def after(number):
        return fingerprint(step(state.replace(step=jnp.int32(number)), frozen, batch)[0].params)

    assert after(0) == after(0) != after(1)


def test_fingerprint_sees_every_bit_and_place():
    params = {"a": jnp.arange(12.0).reshape(3, 4), "b": {"c": jnp.ones(2, jnp.bfloat16)}}
    first = fingerprint(params)
    assert fingerprint(jax.tree.map(jnp.array, params)) == first
    flipped = params["a"].at[2, 1].set(jnp.nextafter(params["a"][2, 1], 100.0))
    for other in (
        params | {"a": flipped},
        params | {"a": params["a"][::-1]},
        params | {"a": params["a"][:, ::-1]},
        params | {"a": params["a"].reshape(4, 3)},
        params | {"b": {"c": -params["b"]["c"]}},
        params | {"a": params["a"].at[1, 2].multiply(-1)},
        {"a": params["a"], "b": {"d": params["b"]["c"]}},
    ):
        assert fingerprint(other) != first
    assert has_fingerprint(params, first) and not has_fingerprint(params, first[::-1])
    of_the_first_version = "9535de008b25f9e6"
    assert has_fingerprint(params, of_the_first_version)
    assert not has_fingerprint(params | {"a": flipped}, of_the_first_version)


def test_what_acts_on_no_main_row_is_not_folded():
    params = {"q_proj": {"weight": 1, "lora_a": 2, "lora_b": 3}}
    assert merge_lora(params, LOSSLESS) is params and merged_adaptation(LOSSLESS) == LOSSLESS
