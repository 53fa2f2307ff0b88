"""The keys that say what a model is: its sizes, its streams or heads, its LoRA."""

import dataclasses
from typing import Annotated, Literal

from ssjax.config.kinds import Count, Factor, Few, Id, Positive, Size, Some, Weight
from ssjax.config.ranges import Range


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and mathematics of the decoder; the defaults are a small Llama.

    With `pretrained`, everything but `pretrained` and `dtype` is read from there.
    """

    # Directory, address in a bucket, or hub id of the base weights; empty: random weights.
    pretrained: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; trained weights stay float32

    vocab_size: Count = 0  # 0: as many as the tokenizer has
    embed_dim: Size = 192  # D
    num_layers: Annotated[int, Range(1, 10000)] = 6  # L, trunk and stream layers together
    num_heads: Size = 6  # N
    num_kv_heads: Size = 2  # K, divides num_heads
    head_dim: Size = 32  # H, even (rotary halves)
    mlp_dim: Size = 512  # F
    tie_embeddings: bool = True  # the LM head is the embedding table

    positions: Literal["rotary", "learned"] = "rotary"  # learned: a table that is added
    # Of a learned table: no sequence may be longer. Of rotary positions: what the model was made
    # for, beyond which decoding and training warn; 0: not known.
    max_positions: Count = 0
    position_offset: Count = 0  # rows of a learned table before position 0
    rotary_dim: Count = 0  # leading part of each head that is rotated; 0: all of it
    rope_theta: Positive = 10000.0  # base of the rotary wavelengths
    rope_local_theta: Weight = 0.0  # of the layers in local_layers; 0: rope_theta, scaled alike
    # linear: positions / factor; longrope: rope_factors, for up to rope_original_positions tokens.
    rope_scaling: Literal["none", "linear", "llama3", "longrope"] = "none"
    rope_factor: Positive = 1.0  # linear, llama3: how many times longer the context is
    rope_low_freq_factor: Positive = 1.0  # llama3
    rope_high_freq_factor: Positive = 4.0  # llama3
    rope_factors: tuple[Factor, ...] = ()  # longrope: what the frequency of each pair is over
    rope_attention_factor: Positive = 1.0  # longrope: times the rotated part of queries and keys
    # Length before scaling. llama3: one of the rule's ends; longrope: no sequence may be longer,
    # because the model then has other factors.
    rope_original_positions: Count = 0

    # Order of norms and residuals, see models/layers.py.
    block: Literal["pre_norm", "post_norm", "output_norm", "parallel", "sandwich"] = "pre_norm"
    norm: Literal["rms", "layer"] = "rms"  # rms or layer (mean taken off, bias)
    norm_epsilon: Annotated[float, Range(above=0, below=1)] = 1e-5  # added to variances
    norm_offset: float = 0.0  # added to norm weights: 1 where they are stored around 0
    final_norm: bool = True  # a norm before the LM head
    query_key_norm: bool = False  # RMS norm of queries and keys
    query_key_norm_over: Literal["head", "projection"] = "head"  # each head, or all as one vector
    activation: Literal["silu", "relu", "gelu", "gelu_tanh"] = "silu"  # of the MLP
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x)))

    qkv_bias: bool = False  # of the query, key and value projections
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False  # of all projections of the MLP
    head_bias: bool = False  # of the LM head

    table_dim: Count = 0  # width of the embedding table, projected to D and back; 0: D
    scale_embeddings: bool = False  # embeddings times sqrt(D)
    embedding_multiplier: Positive = 1.0  # embeddings times it
    residual_multiplier: Positive = 1.0  # what attention and MLP add, times it
    query_scale: Weight = 0.0  # times query-key products; 0: head_dim ** -0.5
    attention_softcap: Weight = 0.0  # c * tanh(scores / c); 0: off
    logit_softcap: Weight = 0.0  # the same for the LM head
    logit_divisor: Positive = 1.0  # logits over it, before the cap
    window: Count = 0  # tokens that the layers in local_layers see; 0: no layer is local
    local_layers: tuple[Id, ...] = ()  # numbers of layers, from 0
    no_rope_layers: tuple[Id, ...] = ()  # numbers of layers that rotate neither queries nor keys

    @property
    def longest_sequence(self) -> int:
        """Tokens that no sequence may exceed; 0: there is no such limit."""
        if self.positions == "learned":
            return self.max_positions
        return self.rope_original_positions if self.rope_scaling == "longrope" else 0


@dataclasses.dataclass(frozen=True)
class StreamsConfig:
    """Speculative streams (the paper's gamma and N_s)."""

    num_streams: Few = 4  # J; 0 trains an ordinary language model
    num_stream_layers: Size = 2  # N_s top layers that run the streams
    # The form of the PMLR paper: the main stream also reads its own streams. J is then part of
    # the model, which cannot be decoded without its streams. False: arXiv v1, lossless, detached.
    main_reads_streams: bool = False
    # What tells streams apart beside their positions: embedding (a learned vector each, paper
    # Eq. 3) or rotation of their values by an angle each, without parameters (v1 Eq. 7).
    variation: Literal["embedding", "rotation"] = "embedding"
    # For rotation: the values of stream j turn by j * pi / (2 * (rotation_length + J)). The paper
    # has the longest sequence here; bfloat16 loses most of so small an angle. 0: the widest,
    # a quarter turn over the J streams.
    rotation_length: Count = 2048
    # Rank of the map from the trunk's hidden state to the start of the streams (f of paper Eq. 3),
    # which is added to the identity; 0: the identity alone, as in all reported runs.
    init_rank: Count = 0
    # Rank of the correction of every stream by the token of the parent node, see models/parent.py;
    # 0: streams do not know what was drafted before them, as in the paper.
    parent_rank: Count = 64
    # Rank of what the token just emitted, the root of the draft, adds to the start of the streams.
    # The streams then run after verification (decode.deferred); 0: they do not know the root.
    root_rank: Count = 64
    # Tokens that streams can draft, the most frequent of the training targets: a smaller product
    # in every pass and in training. Any token can still be emitted. 0: the whole vocabulary.
    draft_vocab_size: Count = 0
    # Their ids, rising: found when the run begins, unless they are given.
    draft_tokens: tuple[Id, ...] = ()
    exit_rank: Count = 0  # rank of the early-exit adapter that prunes drafts; 0: none, paper: 8
    medusa_heads: Few = 0  # extra heads in place of streams; set by drafter.kind=medusa

    @property
    def num_ahead(self) -> int:
        """J streams or K Medusa heads: how many tokens ahead the model drafts."""
        return self.num_streams or self.medusa_heads

    @property
    def knows_parents(self) -> bool:
        """Whether what it drafts is corrected by the parent's token."""
        return self.parent_rank > 0 and self.num_ahead > 0

    @property
    def knows_root(self) -> bool:
        """Whether streams start from the token that follows their anchor, too."""
        return self.root_rank > 0 and self.num_streams > 0

    @property
    def orders(self) -> tuple[bool, ...]:
        """Values of `DecodeConfig.deferred` that the streams can run in."""
        if self.main_reads_streams:
            return (False,)
        return (True,) if self.knows_root else (True, False)


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """What the model is given to draft with.

    streams   speculative streams, see `StreamsConfig`
    medusa    Medusa heads (Cai et al. 2024): a residual block and a vocabulary projection for each
              token ahead, on the last hidden state. With adaptation.mode=lossless the base is
              frozen (Medusa-1), with detached the heads are trained beside the fine-tune on
              stopped gradients, else along with it (Medusa-2).
    """

    kind: Literal["streams", "medusa"] = "streams"  # see above
    num_heads: Some = 4  # of medusa
    # For medusa, which is published without it: rank of `StreamsConfig.parent_rank`.
    parent_rank: Count = 0


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """What is trained, and how.

    full      all weights
    shared    LoRA on all layers, used by main and stream rows: a new model
    lossless  LoRA on the stream layers for stream rows only: outputs are the base model's
    detached  both at once: LoRA on all layers by the main loss alone, and LoRA of their own for
              stream rows by the stream losses, whose gradients stop there. The fine-tune is that
              of a run without streams. The weights of the losses then hardly matter: each part
              has its own, and Adam does not see their scale
    """

    mode: Literal["full", "shared", "lossless", "detached"] = "full"
    rank: Size = 32  # of LoRA, as the rest of this group
    alpha: Positive = 64.0  # the update is multiplied by alpha / rank
    dropout: Annotated[float, Range(0, below=1)] = 0.0  # on the input of LoRA, in training
    targets: tuple[Projection, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )  # those that the model has
