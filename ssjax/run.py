"""A run directory, opened for decoding.

config.json        the resolved config
metrics.jsonl      one JSON object per logged step
checkpoints/STEP   train state, data position, config, tokenizer
tokenizer.model    SentencePiece
evaluation.json    the last evaluation
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from ssjax import config as config_lib
from ssjax.config import Config, DecodeConfig
from ssjax.data.tasks import Task, get_task
from ssjax.data.tokenizer import SentencePieceTokenizer
from ssjax.decoding.decoder import Completion, Decoder
from ssjax.decoding.drafters import Drafter, make_drafter
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer, causal_mask
from ssjax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a prompt became."""

    prompt: str  # as given
    text: str
    completion: Completion

    @property
    def tokens_per_call(self) -> float:
        """Tokens that decode passes emitted, per pass; 0 if there was no pass."""
        return sum(self.completion.runs[1:]) / max(self.completion.calls, 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer and settings."""

    workdir: Path
    step: int  # of the checkpoint
    config: Config
    task: Task
    tokenizer: SentencePieceTokenizer
    decoder: Decoder

    def generate(
        self, inputs: Sequence[str], *, drafter: Drafter | None = None, raw: bool = False, **changes
    ) -> list[Answer]:
        """Decodes inputs; every output is what plain decoding would give.

        Args:
          inputs: for this task, e.g. a dialogue; with raw, whole prompts.
          drafter: None for the drafter of the config.
          raw: inputs are used as they are, without the task's prompt format.
          **changes: fields of `DecodeConfig`, e.g. max_new_tokens=20, temperature=0.7.

        Raises:
          UserError: an empty input, or a setting that cannot work.
        """
        decode = self.decode_config(**changes)
        prompts = [text if raw else self.task.prompt_from_input(text) for text in inputs]
        for number, text in enumerate(inputs, start=1):
            if not text.strip():
                raise UserError(f"prompt {number} is empty; give at least one word")
        completions = self.decoder.generate(
            [self.encode_prompt(prompt) for prompt in prompts],
            decode.max_new_tokens,
            drafter=drafter or make_drafter(decode, self.config.streams.num_streams),
            sampling=make_sampling(decode),
            deferred=decode.deferred,
            batch_size=min(decode.batch_size, max(len(prompts), 1)),
            seed=decode.seed,
        )
        return [
            Answer(text, self.tokenizer.decode(completion.tokens), completion)
            for text, completion in zip(inputs, completions, strict=True)
        ]

    def encode_prompt(self, prompt: str) -> list[int]:
        """Prompt ids as in training, begin-of-sequence first; nothing is cut."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    def decode_config(self, **changes) -> DecodeConfig:
        """The run's decode settings with some of them changed, validated.

        Raises:
          UserError: an unknown field or a value that cannot work.
        """
        values = config_lib.to_dict(self.config)
        values["decode"] |= changes
        return config_lib.from_dict(values).decode


def load_run(workdir: str | Path, checkpoint_name: str = "latest") -> Run:
    """Opens a run directory for decoding.

    Args:
      workdir: of `python -m ssjax.train`.
      checkpoint_name: "latest", "best" (lowest validation loss), or a step.

    Raises:
      UserError: not a run directory, or no such checkpoint.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    tokenizer = SentencePieceTokenizer.from_file(workdir / "tokenizer.model")
    directory = workdir / "checkpoints"
    step = checkpoint.find_step(directory, checkpoint_name)
    model = make_model(config, tokenizer.vocab_size)
    params = checkpoint.load_params(directory, step, abstract_params(model))
    return open_run(workdir, step, config, tokenizer, params)


def open_run(
    workdir: Path, step: int, config: Config, tokenizer: SentencePieceTokenizer, params: Params
) -> Run:
    """A `Run` from parameters that are already in memory (scanned form)."""
    decoder = Decoder(
        make_model(config, tokenizer.vocab_size),
        params,
        eos_ids=(tokenizer.eos_id,),
        pad_id=tokenizer.pad_id,
        prompt_buckets=config.decode.prompt_buckets,
    )
    return Run(workdir, step, config, get_task(config.data.task), tokenizer, decoder)


def read_config(workdir: Path) -> Config:
    """Reads config.json of a run directory.

    Raises:
      UserError: missing, not JSON, or not a config of this version.
    """
    path = workdir / "config.json"
    try:
        return config_lib.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; give the workdir of a run made by python -m ssjax.train"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None


def make_model(config: Config, vocab_size: int) -> Transformer:
    """The scanned form of the model that a config describes."""
    if config.model.vocab_size not in (0, vocab_size):
        raise UserError(
            f"config: model.vocab_size {config.model.vocab_size} is not the tokenizer's "
            f"{vocab_size}; leave it at 0 to take the tokenizer's"
        )
    model = dataclasses.replace(config.model, vocab_size=vocab_size)
    return Transformer(model, config.streams, scan=True)


def init_params(model: Transformer, seed: int) -> Params:
    """Random parameters, float32; pure, to be jitted or traced by the caller."""
    one = jnp.zeros((1, 1), jnp.int32)
    num_streams = model.streams.num_streams
    return model.init(
        jax.random.key(seed), one, one, causal_mask(1), anchors=one, num_streams=num_streams
    )["params"]


def abstract_params(model: Transformer) -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(lambda: init_params(model, 0))


def make_sampling(decode: DecodeConfig) -> Sampling:
    """The target distribution that a config asks for."""
    return Sampling(decode.temperature, decode.top_k, decode.top_p)
