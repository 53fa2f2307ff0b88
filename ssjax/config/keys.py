"""The keys of a config, by group: default, range, unit and meaning."""

import dataclasses
from typing import Annotated, Literal

from ssjax.config.kinds import Count, Few, Id, Positive, Share, Size, Some, Weight
from ssjax.config.model_keys import AdaptationConfig, DrafterConfig, ModelConfig, StreamsConfig
from ssjax.config.ranges import Range


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the training loss, paper Eq. 5, each a mean over its own targets."""

    main_weight: Weight = 1.0  # alpha_0
    stream_weight: Weight = 0.1  # alpha_1, of the first stream or Medusa head
    # alpha_j is stream_weight * stream_decay ** (j - 1). 1: the same for all (paper); Medusa: 0.8.
    stream_decay: Annotated[float, Range(above=0, high=1)] = 1.0
    # Share of the divergence from the main stream's own distribution in what a stream or Medusa
    # head minimises; the rest is cross-entropy. 0: none.
    distillation: Annotated[float, Range(0, 1)] = 0.0
    # Which divergence, see training/teacher.py.
    divergence: Literal["kl", "total_variation", "mixed"] = "kl"
    exit_weight: Weight = 0.1  # of the early-exit adapter, if there is one
    chunk_size: Size = 1024  # rows projected onto the vocabulary at a time


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up."""

    learning_rate: Positive = 1e-3  # peak
    final_learning_rate: Weight = 1e-5  # at the last step; constant has none
    warmup_steps: Count = 50  # in which the learning rate rises from 0
    # Of the learning rate after the warm-up: cosine and linear fall to the last step, constant
    # stays, wsd stays and falls linearly at the end (warm-up, stable, decay).
    decay: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    # Of wsd: the share of all steps in which it falls.
    decay_share: Annotated[float, Range(above=0, high=1)] = 0.2
    weight_decay: Weight = 0.01  # projection matrices only, not LoRA
    beta1: Annotated[float, Range(0, below=1)] = 0.9  # decay of the mean of gradients
    beta2: Annotated[float, Range(0, below=1)] = 0.98  # decay of the mean of their squares
    # Global gradient norm; 0: off. With adaptation.mode=detached, that of the model and that of
    # what drafts are each held to it.
    clip_norm: Weight = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut."""

    task: str = "dialogsum"  # dialogsum, e2e_nlg, sql_context, pairs, chat, or registered
    # Directory with the files of the splits, or one file of records; hub:OWNER/NAME of the Hugging
    # Face hub, with /FOLDER and @REVISION; empty: the generated sample (dialogsum only).
    path: str = ""
    # Columns of the files that the task calls by other names: "prompt=question" takes its prompt
    # from the column question.
    columns: tuple[str, ...] = ()
    # Shares of the records that become a split where there are no files of it; 0: none.
    validation_share: Share = 0.0
    test_share: Share = 0.0  # the same of the test split
    split_seed: Count = 0  # of the shares; another one divides in another way
    # More data of the same task that training draws from: "DIR=WEIGHT" each, where data.path has
    # the weight 1. Their train splits alone are read.
    mixture: tuple[str, ...] = ()
    prepared_dir: str = "runs/data"  # where prepared (array_record) data sets are kept
    max_prompt_length: Size = 160  # tokens
    max_target_length: Size = 48  # tokens, end of sequence included
    # What training does with records that are longer: prompts lose their beginning and targets
    # their end, or the record is left out, of validation losses too. Prompts that are decoded are
    # always cut. drop looks at all records once.
    too_long: Literal["cut", "drop"] = "cut"
    batch_size: Size = 32  # rows per optimizer step, one sequence each unless packed
    # Widths of rows below the greatest: batches of sequences of like length, a compiled program
    # for each width. Looks at all records once.
    length_buckets: tuple[Size, ...] = ()
    # Several sequences a row, with max_target_length target tokens in all. As length_buckets.
    packing: bool = False
    # Answers of a conversation in one row, as far as they fit max_prompt_length and together
    # max_target_length, and where the chat template writes what came before alike each time: the
    # same losses for fewer tokens. Looks at all records once.
    join_answers: bool = False
    # A directory with tokenizer files or a SentencePiece .model; empty: that of the pretrained
    # model, or one trained on the training split.
    tokenizer: str = ""
    tokenizer_vocab_size: Size = 1024  # of the trained tokenizer
    tokenizer_records: Count = 20000  # training records that it is trained on, at most; 0: all

    @property
    def mixed(self) -> tuple[tuple[str, float], ...]:
        """Paths and weights of the mixture. Raises: ValueError: a weight that is no number."""
        parts = [each.rpartition("=") for each in self.mixture]
        return tuple((path, float(weight)) for path, _, weight in parts)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; the product is their number, one size may be -1."""

    data: Annotated[int, Range(-1)] = -1  # the batch is divided, weights are copied
    fsdp: Annotated[int, Range(-1)] = 1  # the batch and the weights are divided
    tensor: Annotated[int, Range(-1)] = 1  # heads, MLP features and vocabulary are divided
    # Sizes of data, fsdp and tensor that weights move to when a training decodes, in validation and
    # at its end; empty: no fsdp, and the largest tensor up to 16 that divides heads and MLP.
    decode: tuple[Annotated[int, Range(-1)], ...] = ()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    num_steps: Size = 400  # optimizer steps
    # In place of num_steps: times that training goes through as many records as it has; with
    # packing a step takes more of them than rows. 0: num_steps.
    num_epochs: Weight = 0.0
    accumulation: Size = 1  # micro-batches per step; divides data.batch_size
    # What the backward pass computes again to save memory: none, products (all but matrix
    # products with weights), or full (each layer).
    remat: Literal["none", "products", "full"] = "none"
    # On TPU and GPU, in bfloat16: main rows by the platform's fused kernel, where it applies.
    fused_attention: bool = True
    log_every: Count = 20  # steps; 0: only at the end
    eval_every: Count = 200  # steps between validation losses; 0: only at the end
    eval_batches: Size = 4  # validation batches per validation loss
    # Validation prompts that are decoded beside each validation loss, as the decode group says,
    # for tokens per call and acceptance by depth; 0: none. Models that draft for themselves only.
    eval_prompts: Count = 32
    # Validations in a row that are no better by checkpoint.best_by than the best before them, after
    # which the run ends as a finished one; 0: it makes all its steps.
    patience: Count = 0
    profile_at: Count = 0  # first step that jax.profiler records, into workdir/profile; 0: none
    profile_steps: Size = 3  # how many
    # A port of every host at which TensorBoard or xprof ask for a trace of the moment; 0: none.
    profiler_port: Annotated[int, Range(0, 65535)] = 0
    # Where metrics go beside metrics.jsonl; each is an extra to be installed.
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    # Steps between saves; 0: not by steps. Also saved are the last step, one where a run stops,
    # and one whose validation is among the best.
    save_every: Count = 100
    save_minutes: Weight = 0.0  # minutes after the last save until the next; 0: not by time
    keep_latest: Size = 2  # checkpoints, the newest
    keep_every: Count = 0  # steps: every multiple of it is saved and kept for ever; 0: none
    keep_best: Count = 1  # by best_by; 0: none beyond the others
    # What the best has, by its name in the validation records of metrics.jsonl, such as
    # validation_loss, validation_accuracy_main or validation_tokens_per_call: the least of a loss,
    # the most of others.
    best_by: str = "validation_loss"


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """The decoder's defaults, for evaluation and generation."""

    # plain, streams, medusa, prompt_lookup or draft_model; auto: what the model was trained with,
    # else plain.
    drafter: Literal["auto", "plain", "streams", "medusa", "prompt_lookup", "draft_model"] = "auto"
    draft_model: str = ""  # for draft_model: directory of a model with the same tokenizer
    # The tree that streams fill: best_first (joint probability), static (top-k per depth) or
    # explicit (any shape, filled with the token of the given rank).
    tree: Literal["best_first", "static", "explicit"] = "best_first"
    # Draft nodes per pass, the root not counted, of best_first, prompt_lookup and draft_model.
    num_nodes: Some = 8
    branching: tuple[Size, ...] = (2, 1, 1)  # children per node at depth 1, 2, ... for static
    parents: tuple[Annotated[int, Range(-1)], ...] = (-1,)  # of every node, for explicit
    ranks: tuple[Id, ...] = (0,)  # of every node, 0 the best token of its stream, for explicit
    num_streams: Few = 0  # streams or Medusa heads used for drafting; 0: all that were trained
    lookup_nodes: Few = 0  # draft nodes that prompt lookup adds to the tree of the streams
    lookup_match: Some = 3  # last tokens that prompt lookup looks for, at most
    # Draft nodes that go on into the stream layers, the likeliest by the early exit (it needs
    # streams.exit_rank above 0); 0: all.
    kept_nodes: Few = 0
    # Of those, nodes that the early exit gives a smaller chance after their parent are dropped
    # with all below them: the paper's form, which saves no time here; 0: none.
    exit_threshold: Annotated[float, Range(0, below=1)] = 0.0
    # A node that streams or Medusa heads give a smaller chance to be kept, its whole path counted,
    # is not drafted, and a pass with few nodes left takes a narrower program; 0: all are drafted.
    min_node_chance: Annotated[float, Range(0, below=1)] = 0.0
    # Streams run after verification, at the accepted node alone. Has no effect where the main
    # stream reads its streams: they run in every pass.
    deferred: bool = True
    temperature: Weight = 0.0  # 0: greedy
    top_k: Count = 0  # 0: off
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0  # 1: off
    min_p: Annotated[float, Range(0, 1)] = 0.0  # least share of the largest probability; 0: off
    # These hold for greedy decoding too; see `ssjax.decoding.sampling` for their order.
    repetition_penalty: Annotated[float, Range(1e-3, 1e3)] = 1.0  # of prompt and output; 1: off
    presence_penalty: Annotated[float, Range(-1e3, 1e3)] = 0.0  # of tokens in the output; 0: off
    banned_tokens: tuple[Id, ...] = ()  # ids that are never drawn
    min_new_tokens: Count = 0  # tokens before which no end of sequence is drawn
    # exact, or typical: lossy acceptance of likely drafts, see `ssjax.decoding.acceptance`.
    accept: Literal["exact", "typical"] = "exact"
    # The output ends where its text completes one of these; neither it nor what follows is text.
    stop: tuple[str, ...] = ()
    seed: int = 0  # sampling only
    max_new_tokens: Count = 48  # longest output, tokens
    batch_size: Size = 1  # prompts decoded together
    prompt_buckets: tuple[Size, ...] = (64, 128, 256, 512, 1024)  # padded prompt lengths


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation that ends a training run."""

    enabled: bool = True  # False: a run ends with its last step
    # Whose records are decoded; where the data has no such split, there is no evaluation.
    split: Literal["train", "validation", "test"] = "test"
    max_records: Count = 0  # 0: the whole split
    # Prompts decoded together, in validations too; 0: decode.batch_size.
    batch_size: Count = 0
    # What outputs are scored by, in validations too; empty: the metrics of the task.
    metrics: tuple[Literal["rouge", "bleu", "chrf", "sql"], ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. See each group for units and meanings."""

    workdir: str = "runs/default"  # the run directory; an existing run continues
    # Run directory whose last weights a new run begins with; step, optimizer and data begin anew.
    init_from: str = ""
    # Where a training keeps compiled programs between starts; none: nowhere; empty:
    # JAX_COMPILATION_CACHE_DIR, else ~/.cache/ssjax/compiled, and from Python nowhere.
    compilation_cache: str = ""
    seed: Count = 0  # weights, data order, tokenizer sample
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
