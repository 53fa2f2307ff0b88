"""The kernels of accelerators against the reference attention, where they can run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.models.attention import KV, Causal, SharedSegment, attend
from ssjax.models.execution import Execution
from ssjax.models.fused_attention import fused_causal_attention, is_fused

BF16 = dataclasses.replace(oracles.MODEL, dtype="bfloat16")
SEGMENTS = np.array([[1] * 50 + [2] * 70 + [0] * 10, [1] * 130])


def inputs(length=130, num_kv=2, per_kv=2, width=32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, length, num_kv, per_kv, width)).astype(np.float32)
    k, v = (rng.standard_normal((2, num_kv, length, width)).astype(np.float32) for _ in "kv")
    return jnp.asarray(q), KV(jnp.asarray(k), jnp.asarray(v))


def reference(q, kv, segments, config):
    mask = Causal(segments).dense(q.shape[1])
    if config.local_layers:
        index = jnp.arange(q.shape[1])
        mask = mask & (index[:, None] - index < config.window)
    scale, softcap = config.query_scale or None, config.attention_softcap
    return attend(q[:, :, None], [SharedSegment(kv, mask)], scale, softcap)[:, :, 0]


@pytest.mark.parametrize(
    ("changes", "segments"),
    [
        ({}, None),
        ({"window": 40, "local_layers": (0, 1, 2)}, None),
        ({"query_scale": 0.3, "attention_softcap": 5.0}, None),
        ({}, SEGMENTS),
    ],
    ids=["causal", "window", "scale and softcap", "packed"],
)
def test_splash_equals_the_reference(changes, segments):
    """Outputs and gradients, of the kernel run by the interpreter; two kv heads of two queries."""
    config = dataclasses.replace(oracles.MODEL, head_dim=32, **changes)
    q, kv = inputs()
    segments = None if segments is None else jnp.asarray(segments)
    real = jnp.ones((2, 130)) if segments is None else (segments > 0).astype(jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)
    weights = weights * real[:, :, None, None, None]

    def run(attention):
        def total(q, kv):
            out = attention(q, kv)
            return (out * weights).sum(), out * real[:, :, None, None, None]

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(q, kv)

    ours = run(lambda q, kv: fused_causal_attention(q, kv, segments, config, "tpu", interpret=True))
    theirs = run(lambda q, kv: reference(q, kv, segments, config))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


def test_cudnn_is_given_what_the_reference_computes(monkeypatch):
    """Heads, scale and window as they are passed on; the kernel itself needs a GPU."""
    called = {}

    def without_cudnn(*args, implementation, **kwargs):
        called["implementation"] = implementation
        return compute(*args, implementation="xla", **kwargs)

    compute = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    for changes in ({}, {"window": 7, "local_layers": (0, 1, 2)}, {"query_scale": 0.3}):
        config = dataclasses.replace(oracles.MODEL, head_dim=32, **changes)
        q, kv = inputs(length=20)
        ours = fused_causal_attention(q, kv, None, config, "gpu")
        np.testing.assert_allclose(ours, reference(q, kv, None, config), atol=1e-5)
    assert called["implementation"] == "cudnn"


def test_where_kernels_apply():
    tpu, gpu = (Execution(platform, fused_attention=True) for platform in ("tpu", "gpu"))
    assert is_fused(BF16, tpu, packed=True) and is_fused(BF16, gpu, packed=False)
    assert not is_fused(BF16, gpu, packed=True)
    assert not is_fused(BF16, Execution("cpu", fused_attention=True), packed=False)
    assert not is_fused(BF16, Execution("tpu"), packed=False)
    # Float32 means float32; a window in some layers only is chosen at run time.
    assert not is_fused(oracles.MODEL, tpu, packed=False)
    mixed = dataclasses.replace(BF16, window=4, local_layers=(0,))
    assert not is_fused(mixed, tpu, packed=False)
    soft = dataclasses.replace(BF16, attention_softcap=5.0)
    assert is_fused(soft, tpu, packed=False) and not is_fused(soft, gpu, packed=False)
    wide = dataclasses.replace(BF16, head_dim=256)
    assert is_fused(wide, tpu, packed=False) and not is_fused(wide, gpu, packed=False)


@pytest.mark.parametrize("main_reads_streams", [False, True])
def test_the_model_computes_the_same_with_the_kernel(monkeypatch, main_reads_streams):
    """Hidden states of main rows and streams, the kernel replaced by its reference."""
    from ssjax.models import layers

    calls = []

    def stand_in(q, kv, segments, config, platform):
        calls.append(platform)
        return reference(q, kv, segments, config).astype(q.dtype)

    monkeypatch.setattr(layers, "fused_causal_attention", stand_in)
    model = oracles.make_model(dtype="bfloat16", main_reads_streams=main_reads_streams)
    params = oracles.random_params(model, seed=0)
    tokens = np.random.default_rng(0).integers(0, 13, (2, 9))
    anchors = jnp.array([[3, 4], [7, 8]])

    def run(execution):
        return model.clone(execution=execution).apply(
            {"params": params},
            tokens,
            jnp.broadcast_to(jnp.arange(9), (2, 9)),
            Causal(),
            anchors=anchors,
            num_streams=3,
        )

    fused, plain = run(Execution("tpu", fused_attention=True)), run(Execution("tpu"))
    assert calls and set(calls) == {"tpu"}
    for name in ("hidden", "stream_hidden"):
        difference = jnp.abs(getattr(fused, name) - getattr(plain, name)).astype(jnp.float32)
        assert float(difference.max()) < 0.1  # rounding of bfloat16
