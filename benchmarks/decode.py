"""Our decoder on this device: against `transformers`, by nodes, and what is not the model.

    python benchmarks/decode.py
    python benchmarks/decode.py --shapes 5M --json OUT

Llama shapes with random weights, a quarter of the layers with 4 streams, float32, batch size 1,
greedy; the same weights, prompts and number of new tokens everywhere, compilation and a first round
excluded, all ways in turn. Needs the extra `parity` (torch, transformers), which runs on as many
threads as there are cores.

    transformers   seconds of its greedy `generate` / seconds of ours without drafts, prefill
                   included on both sides; the median over prompts of the ratio
    nodes          a pass of 8 nodes (the root and 7 drafts) with its streams / a plain pass, in
                   both execution orders; calibration takes the faster
    overhead       share of that pass that is not the model (verify, accept, write, draft): 1 minus
                   a pass that only runs the model, on main rows, streams and both heads
"""

import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ssjax.cli import options, start
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.decoding import loop
from ssjax.decoding.acceptance import Acceptance
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.decoding.forward import Forward
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.evaluation.pass_time import PassShape, seconds_per_pass
from ssjax.models.parameters import count
from ssjax.models.transformer import Transformer, init_params
from ssjax.weights import huggingface

_SHAPES = flags.DEFINE_list("shapes", "5M,30M,100M", "Which of the shapes.")
_PROMPTS = flags.DEFINE_integer("prompts", 7, "Prompts that both decoders are timed on.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens of a prompt.")
_NEW = flags.DEFINE_integer("max_new_tokens", 128, "New tokens of a prompt.")
_REPEATS = flags.DEFINE_integer("repeats", 31, "Timed loops of passes.")
_JSON = flags.DEFINE_string("json", "", "Also write the result to this file.")

SHAPES = {
    "5M": ModelConfig(
        vocab_size=4096,
        embed_dim=256,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        mlp_dim=704,
    ),
    "30M": ModelConfig(
        vocab_size=8192,
        embed_dim=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        mlp_dim=1408,
    ),
    "100M": ModelConfig(
        vocab_size=32000,
        embed_dim=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        mlp_dim=2048,
    ),
}
NUM_STREAMS = 4
_PAUSE = 0.5  # seconds: threads of the other library wait for work actively, on the same cores


def main() -> int:
    """Measures every shape; returns the exit code."""
    results = []
    for name in _SHAPES.value:
        config = SHAPES[name]
        streams = StreamsConfig(  # without a root: both orders are timed
            NUM_STREAMS, num_stream_layers=max(2, config.num_layers // 4), root_rank=0
        )
        model = Transformer(config, streams, scan=True)
        params = jax.jit(lambda m=model: init_params(m, 0))()
        # An end of sequence outside of the vocabulary: every output has the full length.
        decoder = Decoder(
            model,
            params,
            eos_ids=(config.vocab_size,),
            pad_id=0,
            prompt_buckets=(_PROMPT.value,),
        )
        row = {"shape": name, "parameters": count(params)}
        row |= against_transformers(model, params, decoder) | by_nodes(decoder)
        results.append(row)
        print(
            f"{name}: {row['parameters']:,} parameters\n"
            f"  transformers   {row['their_tokens_per_second']:,.0f} tokens per second, ours "
            f"{row['our_tokens_per_second']:,.0f}: {row['times_transformers']:.2f} times "
            f"({row['identical']} of {_PROMPTS.value} outputs identical)\n"
            f"  8 nodes        {row['deferred_ratio']:.2f} plain passes deferred, "
            f"{row['fused_ratio']:.2f} beside every node\n"
            f"  overhead       {100 * row['overhead']:.1f} % of a pass ({row['order']})",
            flush=True,
        )
    options.write_json(_JSON.value, {"device": jax.devices()[0].device_kind, "shapes": results})
    return 0


def against_transformers(model: Transformer, params, decoder: Decoder) -> dict:
    """Both plain decoders on the same prompts, in turn."""
    import torch
    from transformers import AutoModelForCausalLM

    config = model.config
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab_size, (1 + _PROMPTS.value, _PROMPT.value))
    with tempfile.TemporaryDirectory() as directory:
        weights = {k: v for k, v in params.items() if k != "stream_embedding"}
        config_json = huggingface.llama_config_json(config)
        huggingface.write_params(directory, config, weights, config_json)
        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def ours(prompt):
        request = Request([prompt.tolist()], _NEW.value, Sampling(), seed=0, batch_size=1)
        (completion,) = decoder.generate(request, Way(PlainDrafter(), deferred=True))
        return list(completion.tokens)

    @torch.inference_mode()
    def reference(prompt):
        ids = torch.tensor(prompt[None])
        output = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW.value,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return output[0, len(prompt) :].tolist()

    seconds, outputs = {ours: [], reference: []}, {ours: [], reference: []}
    for prompt in prompts:  # the first of each warms up
        for generate in (ours, reference):
            time.sleep(_PAUSE)
            began = time.perf_counter()
            outputs[generate].append(generate(prompt))
            seconds[generate].append(time.perf_counter() - began)
    pairs = list(zip(seconds[reference][1:], seconds[ours][1:], strict=True))
    same = sum(a == b for a, b in zip(outputs[ours][1:], outputs[reference][1:], strict=True))
    return {
        "times_transformers": statistics.median(a / b for a, b in pairs),
        "our_tokens_per_second": _NEW.value / statistics.median(seconds[ours][1:]),
        "their_tokens_per_second": _NEW.value / statistics.median(seconds[reference][1:]),
        "identical": same,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def by_nodes(decoder: Decoder) -> dict:
    """A pass of 8 nodes in both orders, and the share of the faster one that is not the model."""
    drafter = BestFirstDrafter(7, NUM_STREAMS)
    ways = [Way(PlainDrafter(), True), Way(drafter, True), Way(drafter, False)]
    shape, repeats = PassShape(1, _PROMPT.value, _NEW.value), _REPEATS.value
    plain, *drafted = seconds_per_pass(decoder, ways, shape, repeats=repeats)
    faster = ways[1 + drafted.index(min(drafted))]
    steps = [loop.decode_step, _model_alone]
    whole, model = seconds_per_pass(decoder, [faster] * 2, shape, repeats=repeats, steps=steps)
    return {
        "plain_ms": 1e3 * plain,
        "deferred_ratio": drafted[0] / plain,
        "fused_ratio": drafted[1] / plain,
        "order": "deferred" if faster.deferred else "beside every node",
        "pass_ms": 1e3 * whole,
        "model_ms": 1e3 * model,
        "overhead": 1 - model / whole,
    }


def _model_alone(model, params, drafter, spec, state):
    """`loop.decode_step` with nothing but the model; the state stays as it is."""
    forward = Forward(model, params, drafter, spec)
    draft = forward.run_draft(state)
    logits = forward.logits(draft.output.hidden)
    batch = state.length.shape[0]
    # Streams wait for the logits, as they do for what verification makes of them.
    path = jnp.zeros((batch, drafter.max_depth + 1), jnp.int32) + _never(logits.sum())
    root = Acceptance(path, path[:, 0])
    stream_logits = forward.logits(forward.streams_at(state, draft, root))
    # The tokens of the next pass wait for all that this one computes.
    sums = sum(leaf.sum() for leaf in jax.tree.leaves((stream_logits, draft.output.block)))
    tokens = state.draft.tokens + _never(sums)
    return state.replace(draft=state.draft.replace(tokens=tokens))


def _never(total: jax.Array) -> jax.Array:
    """0, which the compiler cannot know."""
    return (jnp.abs(total) == jnp.inf).astype(jnp.int32)


if __name__ == "__main__":
    start.run(main)
