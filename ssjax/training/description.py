"""Lines that describe a training before its first step."""

from jax.sharding import Mesh

from ssjax.config import Config, ModelConfig
from ssjax.models import lora
from ssjax.models.execution import Execution
from ssjax.models.fused_attention import is_fused
from ssjax.models.parameters import Params, count, flatten, merge
from ssjax.models.transformer import Transformer
from ssjax.parallel import accelerators


def hardware_lines(config: Config, mesh: Mesh, decode_mesh: Mesh) -> list[str]:
    """What a run computes on, how its batch is divided, in which numbers and by which kernel.

    Args:
      config: resolved.
      mesh: that it trains on.
      decode_mesh: of the same devices, that it decodes on.
    """
    data, train = config.data, config.train
    devices = list(mesh.devices.flat)
    rows = data.batch_size // train.accumulation
    parts = f" in {train.accumulation} parts of {rows}" if train.accumulation > 1 else ""
    longest = data.max_prompt_length + data.max_target_length
    peak = accelerators.peak_flops(devices)
    known = f"{peak / 1e12:,.0f} T operations/s each" if peak else "peak unknown: no MFU"
    return [
        f"devices: {accelerators.device_line(devices)} ({known}); "
        f"mesh {_sizes(mesh)}; decodes on {_sizes(decode_mesh)}",
        f"batch: {data.batch_size} rows{parts}, up to {longest} tokens each; products in "
        f"{config.model.dtype}, trained weights in float32; attention: {_kernel(config, mesh)}",
    ]


def _sizes(mesh: Mesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def _kernel(config: Config, mesh: Mesh) -> str:
    """By which main rows attend; rows of streams have no kernel."""
    platform = mesh.devices.flat[0].platform
    execution = Execution(platform, config.train.fused_attention, config.train.remat)
    if not is_fused(config.model, execution, config.data.packing):
        return "without a fused kernel"
    return {"tpu": "splash kernel", "gpu": "cuDNN kernel"}[platform] + " for main rows"


def parameter_line(model: Transformer, trainable: Params, frozen: Params) -> str:
    """How many parameters are the base's, how many the method adds, how many LoRA."""
    leaves = flatten(merge(trainable, frozen))
    added = ("embedding", "init", "root", "parent", "exit")
    sizes = dict.fromkeys(("base", *added, "medusa", "LoRA", "LoRA of the streams"), 0)
    for name, leaf in leaves.items():
        path = tuple(name.split("/"))
        kind = "base"
        if lora.is_lora(path):
            kind = "LoRA of the streams" if path[-1].startswith("stream_") else "LoRA"
        elif lora.is_new(path):
            kind = name.removeprefix("stream_").split("_")[0]
        sizes[kind] += leaf.size
    streams = model.streams
    if streams.medusa_heads:
        told = f", correction by the parent {sizes['parent']:,}" if streams.parent_rank else ""
        return (
            f"parameters: base {sizes['base']:,}; {streams.medusa_heads} Medusa heads "
            f"{sizes['medusa']:,}{told}; LoRA {sizes['LoRA']:,}; trained {count(trainable):,}"
        )
    told_apart = "stream embeddings" if streams.variation == "embedding" else "rotated streams"
    parts = [f"{streams.num_streams} {told_apart} {sizes['embedding']:,}"]
    if streams.init_rank:
        parts.append(f"map to their start {sizes['init']:,}")
    if streams.knows_root:
        parts.append(f"root at their start {sizes['root']:,}")
    if streams.knows_parents:
        parts.append(f"correction by the parent {sizes['parent']:,}")
    parts.append(f"early-exit adapter {sizes['exit']:,}")
    own = sizes["LoRA of the streams"]
    return (
        f"parameters: base {sizes['base']:,}; Speculative Streaming "
        f"{sum(sizes[kind] for kind in added):,} ({', '.join(parts)}); "
        f"LoRA {sizes['LoRA']:,}{f', of the streams alone {own:,}' if own else ''}; "
        f"trained {count(trainable):,}; "
        f"streams in the top {streams.num_stream_layers} of {model.config.num_layers} layers"
    )


def line_of_positions(model: ModelConfig, num_tokens: int) -> str:
    """What there is to say of the longest training example; empty: nothing."""
    if model.positions != "rotary" or not 0 < model.max_positions < num_tokens:
        return ""
    return (
        f"training examples have up to {num_tokens} tokens, more than the {model.max_positions} "
        "positions that the model is made for (max_position_embeddings); lower "
        "data.max_prompt_length or data.max_target_length to cut them"
    )
