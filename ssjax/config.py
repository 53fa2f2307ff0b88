"""Every setting of a run: one default each, validated, frozen and hashable.

The dataclasses below are the only place where a default stands. `default_config` mirrors
them as an `ml_collections.ConfigDict`, which experiments edit and the command line
overrides; `from_config_dict` turns that back into the frozen form, which is all that the
library accepts. `ml_collections` is imported inside the two bridge functions because
`models` and `decoding` read these classes and must run without it.
"""

import dataclasses
import typing
from typing import Any

from ssjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and mathematics of the decoder; the defaults are a small Llama.

    With `pretrained`, everything but `pretrained` and `dtype` is read from there.
    """

    pretrained: str = ""  # directory or hub id of the base weights; empty: random weights
    dtype: str = "float32"  # compute dtype, float32 or bfloat16; trained weights stay float32

    vocab_size: int = 0  # 0: as many as the tokenizer has
    embed_dim: int = 192  # D
    num_layers: int = 6  # L, trunk and stream layers together
    num_heads: int = 6  # N
    num_kv_heads: int = 2  # K, divides num_heads
    head_dim: int = 32  # H, even (rotary halves)
    mlp_dim: int = 512  # F
    tie_embeddings: bool = True  # the LM head is the embedding table

    positions: str = "rotary"  # rotary, or learned: a table added to the embeddings
    max_positions: int = 0  # length of a learned table: no sequence may be longer
    position_offset: int = 0  # rows of a learned table before position 0
    rotary_dim: int = 0  # leading part of each head that is rotated; 0: all of it
    rope_theta: float = 10000.0
    rope_local_theta: float = 0.0  # of the layers in local_layers; 0: rope_theta, scaled alike
    rope_scaling: str = "none"  # none, linear (positions / factor) or llama3
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0  # llama3
    rope_high_freq_factor: float = 4.0  # llama3
    rope_original_positions: int = 0  # llama3: length before scaling

    block: str = "pre_norm"  # pre_norm, post_norm, parallel or sandwich; see models/layers.py
    norm: str = "rms"  # rms or layer (mean taken off, bias)
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0  # added to norm weights: 1 where they are stored around 0
    final_norm: bool = True  # a norm before the LM head
    query_key_norm: bool = False  # RMS norm of each query and key head
    activation: str = "silu"  # silu, relu, gelu or gelu_tanh
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x)))

    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    head_bias: bool = False  # of the LM head

    table_dim: int = 0  # width of the embedding table, projected to D and back; 0: D
    scale_embeddings: bool = False  # embeddings times sqrt(D)
    query_scale: float = 0.0  # times query-key products; 0: head_dim ** -0.5
    attention_softcap: float = 0.0  # c * tanh(scores / c); 0: off
    logit_softcap: float = 0.0  # the same for the LM head
    window: int = 0  # tokens that the layers in local_layers see; 0: no layer is local
    local_layers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class StreamsConfig:
    """Speculative streams (the paper's gamma and N_s)."""

    num_streams: int = 4  # J; 0 trains an ordinary language model
    num_stream_layers: int = 2  # N_s top layers that run the streams
    # The form of the PMLR paper: the main stream also reads its own streams. J is then part of
    # the model, which cannot be decoded without its streams. False: arXiv v1 and lossless.
    main_reads_streams: bool = False
    # What tells streams apart beside their positions: embedding (a learned vector each, paper
    # Eq. 3) or rotation of their values by an angle each, without parameters (v1 Eq. 7).
    variation: str = "embedding"
    # For rotation: the values of stream j turn by j * pi / (2 * (rotation_length + J)). The paper
    # has the longest sequence here; bfloat16 loses most of so small an angle. 0: the widest,
    # a quarter turn over the J streams.
    rotation_length: int = 2048
    # Rank of the map from the trunk's hidden state to the start of the streams (f of paper Eq. 3),
    # which is added to the identity; 0: the identity alone, as in all reported runs.
    init_rank: int = 0
    exit_rank: int = 0  # rank of the early-exit adapter that prunes drafts; 0: none, paper: 8
    medusa_heads: int = 0  # extra heads in place of streams; set by drafter.kind=medusa


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """What the model is given to draft with.

    streams   speculative streams, see `StreamsConfig`
    medusa    Medusa heads (Cai et al. 2024): a residual block and a vocabulary projection for each
              token ahead, on the last hidden state. With adaptation.mode=lossless the base is
              frozen (Medusa-1), else trained along (Medusa-2).
    """

    kind: str = "streams"
    num_heads: int = 4  # of medusa


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """What is trained, and how.

    full      all weights
    shared    LoRA on all layers, used by main and stream rows: a new model
    lossless  LoRA on the stream layers for stream rows only: outputs are the base model's
    """

    mode: str = "full"
    rank: int = 32  # of LoRA, as the rest of this group
    alpha: float = 64.0  # the update is multiplied by alpha / rank
    dropout: float = 0.0  # on the input of LoRA, in training
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )  # those that the model has


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the training loss, paper Eq. 5, each a mean over its own targets."""

    main_weight: float = 1.0  # alpha_0
    stream_weight: float = 0.1  # alpha_1, of the first stream or Medusa head
    # alpha_j is stream_weight * stream_decay ** (j - 1). 1: the same for all (paper); Medusa: 0.8.
    stream_decay: float = 1.0
    exit_weight: float = 0.1  # of the early-exit adapter, if there is one
    chunk_size: int = 1024  # rows projected onto the vocabulary at a time


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up."""

    learning_rate: float = 1e-3  # peak
    final_learning_rate: float = 1e-5  # at the last step
    warmup_steps: int = 50
    decay: str = "cosine"  # of the learning rate behind the warm-up: cosine or linear
    weight_decay: float = 0.01  # projection matrices only, not LoRA
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0  # global gradient norm


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut."""

    task: str = "dialogsum"  # dialogsum, e2e_nlg, sql_context, pairs or chat
    path: str = ""  # directory of the real files; empty: the generated sample (dialogsum only)
    prepared_dir: str = "runs/data"  # where prepared (array_record) data sets are kept
    max_prompt_length: int = 160  # tokens; longer prompts lose their beginning
    max_target_length: int = 48  # tokens, end of sequence included
    batch_size: int = 32  # rows per optimizer step, one sequence each unless packed
    # Widths of rows below the greatest: batches of sequences of like length, a compiled program
    # for each width. Looks at all records once.
    length_buckets: tuple[int, ...] = ()
    # Several sequences a row, with max_target_length target tokens in all. As length_buckets.
    packing: bool = False
    # A directory with tokenizer files or a SentencePiece .model; empty: that of the pretrained
    # model, or one trained on the training split.
    tokenizer: str = ""
    tokenizer_vocab_size: int = 1024  # of the trained tokenizer
    tokenizer_records: int = 20000  # training records that it is trained on, at most


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; the product is their number, one size may be -1."""

    data: int = -1  # the batch is divided, weights are copied
    fsdp: int = 1  # the batch and the weights are divided
    tensor: int = 1  # heads, MLP features and vocabulary are divided


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    num_steps: int = 400  # optimizer steps
    accumulation: int = 1  # micro-batches per step; divides data.batch_size
    # What the backward pass computes again to save memory: none, products (all but matrix
    # products with weights), or full (each layer).
    remat: str = "none"
    # On TPU and GPU, in bfloat16: main rows by the platform's fused kernel, where it applies.
    fused_attention: bool = True
    log_every: int = 20  # steps
    eval_every: int = 200  # steps between validation losses; 0: only at the end
    eval_batches: int = 4  # validation batches per validation loss
    profile_at: int = 0  # first step that jax.profiler records, into workdir/profile; 0: none
    profile_steps: int = 3  # how many


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    save_every: int = 100  # steps; the last step is always saved
    keep_latest: int = 2
    keep_best: int = 1  # by validation loss; 0: none beyond the latest


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """The decoder's defaults, for evaluation and generation."""

    # plain, streams, medusa, prompt_lookup or draft_model; auto: what the model was trained with,
    # else plain.
    drafter: str = "auto"
    draft_model: str = ""  # for draft_model: directory of a model with the same tokenizer
    # The tree that streams fill: best_first (joint probability), static (top-k per depth) or
    # explicit (any shape, filled with the token of the given rank).
    tree: str = "best_first"
    # Draft nodes per pass, the root not counted, of best_first, prompt_lookup and draft_model.
    num_nodes: int = 8
    branching: tuple[int, ...] = (2, 1, 1)  # children per node at depth 1, 2, ... for static
    parents: tuple[int, ...] = (-1,)  # of every node, the root first, for explicit
    ranks: tuple[int, ...] = (0,)  # of every node, 0 the best token of its stream, for explicit
    num_streams: int = 0  # streams or Medusa heads used for drafting; 0: all that were trained
    lookup_nodes: int = 0  # draft nodes that prompt lookup adds to the tree of the streams
    lookup_match: int = 3  # last tokens that prompt lookup looks for, at most
    # Draft nodes that go on into the stream layers, the likeliest by the early exit (it needs
    # streams.exit_rank above 0); 0: all.
    kept_nodes: int = 0
    # Of those, nodes that the early exit gives a smaller chance behind their parent are dropped
    # with all below them: the paper's form, which saves no time here; 0: none.
    exit_threshold: float = 0.0
    # Streams run after verification, at the accepted node alone. Has no effect where the main
    # stream reads its streams: they run in every pass.
    deferred: bool = True
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # keeps tokens with this share of the largest probability; 0: off
    # These hold for greedy decoding too; see `ssjax.decoding.sampling` for their order.
    repetition_penalty: float = 1.0  # of tokens in prompt or output; 1: off
    presence_penalty: float = 0.0  # of tokens in the output; 0: off
    banned_tokens: tuple[int, ...] = ()  # ids that are never drawn
    min_new_tokens: int = 0  # tokens before which no end of sequence is drawn
    # exact, or typical: lossy acceptance of likely drafts, see `ssjax.decoding.verify`.
    accept: str = "exact"
    # The output ends where its text completes one of these; neither it nor what follows is text.
    stop: tuple[str, ...] = ()
    seed: int = 0  # sampling only
    max_new_tokens: int = 48
    batch_size: int = 1  # prompts decoded together
    prompt_buckets: tuple[int, ...] = (64, 128, 256, 512, 1024)  # padded prompt lengths


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation that ends a training run."""

    split: str = "test"
    max_records: int = 0  # 0: the whole split


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. See each group for units and meanings."""

    workdir: str = "runs/default"  # the run directory; an existing run continues
    # Where compiled programs are kept between starts; empty: JAX_COMPILATION_CACHE_DIR, if set.
    compilation_cache: str = ""
    seed: int = 0  # weights, data order, tokenizer sample
    model: ModelConfig = ModelConfig()
    streams: StreamsConfig = StreamsConfig()
    drafter: DrafterConfig = DrafterConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    decode: DecodeConfig = DecodeConfig()
    eval: EvalConfig = EvalConfig()


def default_config():
    """Returns a locked `ConfigDict` holding every key of `Config` with its default."""
    from ml_collections import ConfigDict

    config = ConfigDict(dataclasses.asdict(Config()))
    config.lock()
    return config


def from_config_dict(config) -> Config:
    """Returns the validated frozen form of a `ConfigDict` made by `default_config`.

    Raises:
      UserError: a value that cannot work, named by its dotted key.
    """
    return from_dict(config.to_dict())


def from_dict(values: dict[str, Any]) -> Config:
    """Returns a validated `Config` from nested plain values, such as a saved config.json.

    Raises:
      UserError: an unknown key, a wrong type, or a value that cannot work.
    """
    config = _build(Config, values, prefix="")
    _check(
        config.drafter.kind in ("streams", "medusa"),
        f"drafter.kind {config.drafter.kind!r} must be streams or medusa",
    )
    if config.drafter.kind == "medusa":
        _check(config.drafter.num_heads > 0, "drafter.num_heads must be positive")
        heads = dataclasses.replace(
            config.streams, num_streams=0, main_reads_streams=False, init_rank=0, exit_rank=0,
            medusa_heads=config.drafter.num_heads,
        )  # fmt: skip
        config = dataclasses.replace(config, streams=heads)
    _validate(config)
    return config


def shrink(c) -> None:
    """Turns the `ConfigDict` of any experiment into its tiny twin: seconds on one CPU core.

    Every kind of step stays (saving, validation, accumulation of logs); only sizes change.
    """
    c.model.embed_dim, c.model.mlp_dim = 32, 64
    c.model.num_layers, c.streams.num_stream_layers = 3, 2
    c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 4, 2, 8
    c.streams.num_streams = min(c.streams.num_streams, 3)
    c.data.tokenizer_vocab_size, c.data.tokenizer_records = 512, 500
    c.data.batch_size = 4
    c.train.num_steps, c.train.log_every = 24, 4
    c.train.eval_every, c.train.eval_batches = 12, 2
    c.checkpoint.save_every = 6
    c.decode.num_nodes, c.decode.max_new_tokens = 4, 16
    c.eval.max_records = 8


def to_dict(config: Config) -> dict[str, Any]:
    """Returns nested plain values that `from_dict` accepts and JSON can hold."""
    return dataclasses.asdict(config)


def _build(cls, values, prefix):
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        wrong = [f"unknown key {prefix}{k}" for k in unknown]
        raise UserError(
            f"config: {'; '.join(wrong)}; the run was made by a newer version of ssjax "
            "or its config.json was edited"
        )
    built = {}
    for name, hint in hints.items():
        if name not in values:
            continue  # older than this key; its default is what was done before there was one
        value = values[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise UserError(f"config: {prefix}{name} must be a group of keys, got {value!r}")
            built[name] = _build(hint, value, f"{prefix}{name}.")
        else:
            built[name] = _typed(value, hint, prefix + name)
    return cls(**built)


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def _typed(value, hint, key):
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"config: {key} must be a tuple, got {value!r}")
        return tuple(_typed(v, kind, key) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"config: {key} must be {_KINDS[hint]}, got {value!r}")
    return value


def _validate(config: Config) -> None:
    streams, data = config.streams, config.data
    train, decode = config.train, config.decode
    validate_model(config.model)
    _check(streams.num_streams >= 0, "streams.num_streams must be 0 or more")
    _check(
        streams.num_streams > 0 or not streams.main_reads_streams,
        "streams.main_reads_streams needs streams, and streams.num_streams is 0",
    )
    _check(
        streams.variation in ("embedding", "rotation"),
        f"streams.variation {streams.variation!r} must be embedding or rotation",
    )
    _check(streams.rotation_length >= 0, "streams.rotation_length must be 0 or more")
    _check(streams.init_rank >= 0, "streams.init_rank must be 0 (the identity) or more")
    _check(
        streams.num_streams > 0 or streams.init_rank == 0,
        "streams.init_rank needs streams, and streams.num_streams is 0",
    )
    _check(streams.exit_rank >= 0, "streams.exit_rank must be 0 or more")
    _check(
        streams.medusa_heads == 0 or config.drafter.kind == "medusa",
        "streams.medusa_heads is set by drafter.kind=medusa; give drafter.num_heads instead",
    )
    if not config.model.pretrained:  # else num_layers is not known yet
        check_stream_layers(config)
    _validate_adaptation(config)
    _check(
        not (data.length_buckets and data.packing),
        "data.length_buckets and data.packing are two ways to save padding; choose one",
    )
    _check(min(data.length_buckets, default=1) > 0, "data.length_buckets must hold positive widths")
    places = {
        "workdir": config.workdir,
        "data.path": data.path,
        "data.prepared_dir": data.prepared_dir,
    }
    for key, place in places.items():
        _check(
            "://" not in place,
            f"{key} {place!r} is not a path; mount the bucket on every host, see docs/launch.md",
        )
    for key in ("max_prompt_length", "max_target_length", "batch_size"):
        _check(getattr(data, key) > 0, f"data.{key} must be positive")
    sizes = dataclasses.astuple(config.mesh)
    _check(
        all(size == -1 or size > 0 for size in sizes) and sizes.count(-1) <= 1,
        f"mesh.data, mesh.fsdp and mesh.tensor are {sizes}: positive sizes, one of which may be -1",
    )
    _check(
        train.remat in ("none", "products", "full"),
        f"train.remat {train.remat!r} must be none, products or full",
    )
    for key in ("num_steps", "accumulation", "log_every", "eval_batches", "profile_steps"):
        _check(getattr(train, key) > 0, f"train.{key} must be positive")
    _check(
        data.batch_size % train.accumulation == 0,
        f"data.batch_size {data.batch_size} is not a multiple of train.accumulation "
        f"{train.accumulation}",
    )
    _check(
        config.optimizer.decay in ("cosine", "linear"),
        f"optimizer.decay {config.optimizer.decay!r} must be cosine or linear",
    )
    _check(
        0 < config.loss.stream_decay <= 1,
        "loss.stream_decay must lie above 0 and at most at 1 (all streams weigh the same)",
    )
    _check(config.loss.chunk_size > 0, "loss.chunk_size must be positive")
    _check(config.checkpoint.save_every > 0, "checkpoint.save_every must be positive")
    _check(config.checkpoint.keep_latest > 0, "checkpoint.keep_latest must be positive")
    drafters = ("auto", "plain", "streams", "medusa", "prompt_lookup", "draft_model")
    _check(
        decode.drafter in drafters,
        f"decode.drafter {decode.drafter!r} must be one of {', '.join(drafters)}",
    )
    _check(
        (decode.drafter == "draft_model") == bool(decode.draft_model),
        "decode.drafter=draft_model and decode.draft_model=DIR go together",
    )
    _check(
        decode.tree in ("best_first", "static", "explicit"),
        f"decode.tree {decode.tree!r} must be best_first, static or explicit",
    )
    _check(decode.lookup_nodes >= 0, "decode.lookup_nodes must be 0 (off) or more")
    _check(decode.lookup_match >= 1, "decode.lookup_match must be at least 1")
    _check(decode.kept_nodes >= 0, "decode.kept_nodes must be 0 (all) or more")
    _check(0 <= decode.exit_threshold < 1, "decode.exit_threshold must lie in [0, 1)")
    for key in ("kept_nodes", "exit_threshold"):
        _check(
            getattr(decode, key) == 0 or streams.exit_rank > 0,
            f"decode.{key} {getattr(decode, key)} needs the early exit that prunes, and "
            "streams.exit_rank is 0",
        )
    _check(decode.num_nodes >= 1, "decode.num_nodes must be at least 1")
    _check(
        len(decode.branching) >= 1 and min(decode.branching) >= 1,
        f"decode.branching {decode.branching} must name at least one child per depth",
    )
    _check(
        0 <= decode.num_streams <= max(streams.num_streams, streams.medusa_heads),
        f"decode.num_streams {decode.num_streams} is more than the "
        f"{max(streams.num_streams, streams.medusa_heads)} streams of the model",
    )
    _check(decode.temperature >= 0, "decode.temperature must be 0 (greedy) or more")
    _check(decode.top_k >= 0, "decode.top_k must be 0 (off) or more")
    _check(0 < decode.top_p <= 1, "decode.top_p must lie in (0, 1]")
    _check(0 <= decode.min_p <= 1, "decode.min_p must lie between 0 (off) and 1")
    _check(decode.repetition_penalty > 0, "decode.repetition_penalty must be positive; 1 is off")
    _check(min(decode.banned_tokens, default=0) >= 0, "decode.banned_tokens must hold ids from 0")
    _check(decode.max_new_tokens >= 0, "decode.max_new_tokens must be 0 or more")
    _check(
        0 <= decode.min_new_tokens <= decode.max_new_tokens,
        f"decode.min_new_tokens {decode.min_new_tokens} must lie between 0 and "
        f"decode.max_new_tokens {decode.max_new_tokens}",
    )
    _check(
        decode.accept in ("exact", "typical"),
        f"decode.accept {decode.accept!r} must be exact or typical",
    )
    _check(
        decode.accept == "exact" or decode.temperature > 0,
        "decode.accept 'typical' needs decode.temperature above 0: of greedy decoding only one "
        "token is right",
    )
    _check(all(decode.stop), "decode.stop must hold strings that are not empty")
    _check(decode.batch_size > 0, "decode.batch_size must be positive")
    _check(
        len(decode.prompt_buckets) > 0 and min(decode.prompt_buckets) > 0,
        "decode.prompt_buckets must hold positive lengths",
    )


def check_stream_layers(config: Config) -> None:
    """Checks that the model has the stream layers. Raises: UserError."""
    num_layers = config.model.num_layers
    _check(
        1 <= config.streams.num_stream_layers <= num_layers,
        f"streams.num_stream_layers {config.streams.num_stream_layers} must lie between 1 and "
        f"model.num_layers {num_layers}",
    )


_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "positions": ("rotary", "learned"),
    "rope_scaling": ("none", "linear", "llama3"),
    "block": ("pre_norm", "post_norm", "parallel", "sandwich"),
    "norm": ("rms", "layer"),
    "activation": ("silu", "relu", "gelu", "gelu_tanh"),
}


def validate_model(model: ModelConfig) -> None:
    """Checks that the values can work together. Raises: UserError naming the key."""
    for key, choices in _CHOICES.items():
        _check(
            getattr(model, key) in choices,
            f"model.{key} {getattr(model, key)!r} must be one of {', '.join(choices)}",
        )
    for key in ("embed_dim", "num_layers", "mlp_dim"):
        _check(getattr(model, key) > 0, f"model.{key} must be positive")
    _check(
        model.num_heads % max(model.num_kv_heads, 1) == 0 and model.num_kv_heads > 0,
        f"model.num_heads {model.num_heads} is not a multiple of model.num_kv_heads "
        f"{model.num_kv_heads}",
    )
    _check(
        model.head_dim > 0 and model.head_dim % 2 == 0,
        f"model.head_dim {model.head_dim} must be even: rotary positions turn pairs",
    )
    _check(
        0 <= model.rotary_dim <= model.head_dim and model.rotary_dim % 2 == 0,
        f"model.rotary_dim {model.rotary_dim} must be even and at most model.head_dim",
    )
    _check(
        model.positions == "rotary" or model.max_positions > 0,
        "model.max_positions must be given for learned positions",
    )
    _check(
        all(0 <= layer < model.num_layers for layer in model.local_layers),
        f"model.local_layers {model.local_layers} names a layer that does not exist",
    )
    _check(
        not model.local_layers or model.window > 0,
        "model.window must be positive where model.local_layers names layers",
    )


def _validate_adaptation(config: Config) -> None:
    adaptation = config.adaptation
    _check(
        adaptation.mode in ("full", "shared", "lossless"),
        f"adaptation.mode {adaptation.mode!r} must be full, shared or lossless",
    )
    if adaptation.mode == "full":
        return
    _check(
        adaptation.mode != "lossless" or not config.streams.main_reads_streams,
        "adaptation.mode lossless cannot hold with streams.main_reads_streams: streams would "
        "change the main output; choose shared, or main_reads_streams=False",
    )
    _check(
        adaptation.mode != "lossless"
        or config.streams.num_streams + config.streams.medusa_heads > 0,
        "adaptation.mode lossless trains streams alone, and streams.num_streams is 0",
    )
    _check(adaptation.rank > 0, "adaptation.rank must be positive")
    _check(0 <= adaptation.dropout < 1, "adaptation.dropout must lie in [0, 1)")
    known = AdaptationConfig().targets
    wrong = [target for target in adaptation.targets if target not in known]
    _check(
        adaptation.targets and not wrong,
        f"adaptation.targets {adaptation.targets} must name some of {', '.join(known)}",
    )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(f"config: {message}")
