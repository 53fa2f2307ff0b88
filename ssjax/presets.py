"""Settings of the paper, for the experiments to start from.

Two versions of the paper train two forms of the shared mode (arXiv:2402.11131v1, and PMLR 262,
395-413). Their models keep to the form they were reported with:

    v1      main stream reads no stream; N/2 stream layers, N/6 for SQL
    PMLR    main stream reads its streams; 4 stream layers

Stated there: LoRA rank 32, rank-8 pruning adapter, loss weights 1 and 0.1, AdamW, 5e-4 falling
linearly, 5 epochs, bfloat16, up to 4 streams. Not stated, so ours: LoRA targets and alpha, batch
size, warm-up, lengths.
"""

import dataclasses

from ml_collections import ConfigDict

from ssjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PaperModel:
    """A base model that the paper fine-tunes."""

    source: str  # hub id
    num_layers: int
    main_reads_streams: bool  # PMLR; else v1


PAPER_MODELS = {
    "opt-1.3b": PaperModel("facebook/opt-1.3b", 24, False),
    "phi-1.5": PaperModel("microsoft/phi-1_5", 24, False),
    "openllama-7b": PaperModel("openlm-research/open_llama_7b", 32, False),
    "mistral-7b": PaperModel("mistralai/Mistral-7B-Instruct-v0.2", 32, True),
    "llama-2-7b": PaperModel("meta-llama/Llama-2-7b-hf", 32, True),
}


def use_paper_model(
    c: ConfigDict, name: str, *, num_examples: int, v1_share: int, lengths: tuple[int, int]
) -> None:
    """Turns the config of an experiment into the paper's fine-tune of a model.

    Args:
      c: to change.
      name: of `PAPER_MODELS`.
      num_examples: of the training split, for the number of steps of 5 epochs.
      v1_share: N / Ns of v1 for the task.
      lengths: longest prompt and longest target, in tokens.
    """
    model = PAPER_MODELS[name]
    c.workdir = f"runs/{c.data.task}-{name}"
    c.model.pretrained = model.source
    c.model.dtype = "bfloat16"
    c.adaptation.mode = "shared"
    c.adaptation.rank = 32
    c.adaptation.alpha = 64.0
    c.streams.num_streams = 4
    c.streams.exit_rank = 8
    c.streams.main_reads_streams = model.main_reads_streams
    c.streams.parent_rank = c.streams.root_rank = 0  # ours, not the paper's
    pmlr = model.main_reads_streams
    c.streams.num_stream_layers = 4 if pmlr else model.num_layers // v1_share
    c.loss.main_weight, c.loss.stream_weight = 1.0, 0.1
    _optimise(c, num_examples)
    c.data.max_prompt_length, c.data.max_target_length = lengths
    c.decode.max_new_tokens = lengths[1]
    c.decode.num_nodes = 32
    c.decode.prompt_buckets = (lengths[0] // 2, lengths[0])


def use_lossless(c: ConfigDict, source: str, *, num_examples: int, lengths: tuple[int, int]):
    """The paper's lossless mode: a frozen base, rank 8 on queries and values of 4 layers.

    Args:
      c: to change.
      source: hub id or directory of the base model.
      num_examples: of the training split.
      lengths: longest prompt and longest target, in tokens.
    """
    c.model.pretrained = source
    c.model.dtype = "bfloat16"
    c.adaptation.mode = "lossless"
    c.adaptation.rank = 8
    c.adaptation.alpha = 16.0
    c.adaptation.targets = ("q_proj", "v_proj")
    c.streams.num_streams = 4
    c.streams.num_stream_layers = 4
    c.streams.exit_rank = 8
    c.loss.main_weight, c.loss.stream_weight = 0.0, 1.0
    _optimise(c, num_examples)
    c.data.max_prompt_length, c.data.max_target_length = lengths
    c.decode.max_new_tokens = lengths[1]
    c.decode.num_nodes = 32
    c.decode.prompt_buckets = (lengths[0] // 2, lengths[0])


# Small enough for a CPU; `experiments/models/fetch.py` brings the files.
REAL_MODELS = {
    "smollm2-135m": "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3-270m": "models/gemma-3-270m-Q4_K_M.gguf",
}


def use_real_model(
    c: ConfigDict, name: str, *, lengths: tuple[int, int], buckets: tuple[int, ...]
) -> None:
    """A fine-tune of a real model with streams that cannot touch it, in minutes on a CPU.

    Six streams in the top four layers, that draft the tokens of the task; sequences are packed.

    Args:
      c: to change.
      name: of `REAL_MODELS`.
      lengths: prompt tokens of a packed row and its target tokens, each of several sequences.
      buckets: padded prompt lengths of decoding.
    """
    c.workdir = f"runs/{c.data.task}-{name}"
    c.model.pretrained = REAL_MODELS[name]
    c.adaptation.mode = "detached"
    c.adaptation.rank, c.adaptation.alpha = 16, 32.0
    c.streams.num_streams, c.streams.num_stream_layers = 6, 4
    c.streams.draft_vocab_size = 4096
    c.loss.stream_weight, c.loss.distillation = 1.0, 1.0
    c.optimizer.learning_rate, c.optimizer.decay = 1.5e-3, "linear"
    c.optimizer.warmup_steps, c.optimizer.weight_decay = 15, 0.0
    c.data.packing, c.data.batch_size = True, 4
    c.data.max_prompt_length, c.data.max_target_length = lengths
    c.train.num_steps, c.train.log_every = 160, 10
    c.train.eval_every, c.train.eval_prompts = 80, 16
    c.checkpoint.save_every = 40
    c.decode.num_nodes, c.decode.max_new_tokens = 7, 64
    c.decode.prompt_buckets = buckets
    c.eval.max_records = 100


def _optimise(c, num_examples):
    c.optimizer.learning_rate, c.optimizer.final_learning_rate = 5e-4, 0.0
    c.optimizer.decay = "linear"
    c.optimizer.warmup_steps = 100
    c.optimizer.weight_decay = 0.0
    c.optimizer.beta2 = 0.999
    c.data.batch_size = 32
    c.train.num_steps = 5 * num_examples // 32
    c.train.remat = "full"  # a batch of 32 does not fit 16 chips of v5e without: docs/pods.md
    c.train.log_every, c.train.eval_every = 20, 500
    c.checkpoint.save_every = 500


def unknown_variant(path: str, variant: str, known: tuple[str, ...]) -> UserError:
    """The one line about a variant that an experiment does not have."""
    return UserError(f"{path} has no variant {variant!r}: choose one of {', '.join(known)}")
