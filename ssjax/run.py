"""A model opened for decoding: text in, text out."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from ssjax import calibrated, partitioning
from ssjax import config as config_lib
from ssjax.calibrated import Situation
from ssjax.config import AdaptationConfig, Config, DecodeConfig
from ssjax.data import pipeline
from ssjax.data.tasks import Task, get_task
from ssjax.data.tokenizer import Tokenizer
from ssjax.decoding.decoder import Completion, Decoder
from ssjax.decoding.drafters import Drafter, Way, make_drafter
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.models.lora import merge_lora
from ssjax.trained import Trained, load_trained, make_model


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
    """A model with its tokenizer and settings, ready to decode."""

    workdir: Path
    step: int  # of the checkpoint; 0 where there is none
    config: Config
    task: Task
    tokenizer: Tokenizer
    decoder: Decoder

    def generate(
        self,
        inputs: Sequence[str],
        *,
        drafter: Drafter | None = None,
        raw: bool = False,
        calibration: bool = True,
        **changes,
    ) -> list[Answer]:
        """Decodes inputs; every output is what plain decoding would give.

        Args:
          inputs: for this task, e.g. a dialogue; with raw, whole prompts.
          drafter: None for the calibrated one, or that of the config.
          raw: inputs are used as they are, without the task's prompt format.
          calibration: see `way`.
          **changes: fields of `DecodeConfig`, e.g. max_new_tokens=20, temperature=0.7.

        Raises:
          UserError: an empty input, or a setting that cannot work.
        """
        decode = self.decode_config(**changes)
        for number, text in enumerate(inputs, start=1):
            if not text.strip():
                raise UserError(f"prompt {number} is empty; give at least one word")
        batch_size = min(decode.batch_size, max(len(inputs), 1))
        way = Way(drafter, decode.deferred)
        if drafter is None:
            way = self.way(changes, batch_size, calibration=calibration)
        completions = self.decoder.generate(
            [self.encode_prompt(text, raw=raw) for text in inputs],
            decode.max_new_tokens,
            drafter=way.drafter,
            sampling=make_sampling(decode),
            deferred=way.deferred,
            batch_size=batch_size,
            seed=decode.seed,
        )
        return [
            Answer(text, pipeline.answer_text(self.tokenizer, completion.tokens), completion)
            for text, completion in zip(inputs, completions, strict=True)
        ]

    def way(self, changes: Mapping, batch_size: int, *, calibration: bool = True) -> Way:
        """Who drafts and when streams run: as calibrated, if anything fits, else by the config.

        Says on stderr, once, which calibration is used or why one is not.

        Args:
          changes: fields of `DecodeConfig`; one that says how to draft goes before calibration.
          batch_size: prompts decoded together.
          calibration: whether calibration.json of the run is looked at.
        """
        decode = self.decode_config(**changes)
        num_streams = self.config.streams.num_streams
        found = None
        if calibration and num_streams and not calibrated.DRAFTING_KEYS & changes.keys():
            found, line = calibrated.find(self.workdir, self.situation, batch_size)
            _say_once(line)
        return found or Way(make_drafter(decode, num_streams), decode.deferred)

    @property
    def situation(self) -> Situation:
        """What a calibration of this model holds for."""
        mesh = self.decoder.mesh
        kind = mesh.devices.flat[0].device_kind
        return Situation(
            device=kind if mesh.size == 1 else f"{mesh.size} x {kind}",
            dtype=self.config.model.dtype,
            step=self.step,
            num_streams=self.config.streams.num_streams,
        )

    def encode_prompt(self, text: str, *, raw: bool) -> list[int]:
        """Prompt ids of an input as in training; nothing is cut."""
        if raw:
            return [*self.tokenizer.prefix_ids, *self.tokenizer.encode(text)]
        return self.task.prompt_ids(self.task.record_from_input(text), self.tokenizer)

    def decode_config(self, **changes) -> DecodeConfig:
        """The run's decode settings with some of them changed, validated.

        Raises:
          UserError: an unknown field or a value that cannot work.
        """
        values = config_lib.to_dict(self.config)
        values["decode"] |= changes
        return config_lib.from_dict(values).decode


def load_run(
    workdir: str | Path,
    checkpoint_name: str = "latest",
    *,
    adapter: str | Path | None = None,
    base: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Run:
    """Opens a run, an exported or converted model, or a Hugging Face directory for decoding.

    Args:
      workdir: of `python -m ssjax.train`, or another directory that `trained` knows.
      checkpoint_name: "latest", "best" (lowest validation loss), or a step.
      adapter: of `python -m ssjax.export --format adapter`, put on the base of workdir.
      base: where the base weights are now; None: where they were in training.
      mesh: that the weights are divided over; None: the first device.

    Raises:
      UserError: nothing there that can be decoded.
    """
    trained = load_trained(workdir, checkpoint_name, adapter=adapter, base=base, mesh=mesh)
    return open_run(trained, mesh)


def open_run(trained: Trained, mesh: Mesh | None = None) -> Run:
    """A `Run` from weights that are in memory, divided over `mesh` (None: on the first device).

    Adapters of the shared mode are folded into the weights: decoding costs no more than the
    base model.
    """
    config, tokenizer = trained.config, trained.tokenizer
    if mesh is not None:
        partitioning.check_model(config.model, mesh)
    model, params = make_model(config, tokenizer), trained.params
    if config.adaptation.mode == "shared":
        params = merge_lora(params, config.adaptation)
        model = model.clone(adaptation=AdaptationConfig())
    decoder = Decoder(
        model,
        params,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        prompt_buckets=config.decode.prompt_buckets,
        mesh=mesh,
    )
    task = get_task(config.data.task)
    return Run(trained.directory, trained.step, config, task, tokenizer, decoder)


@functools.cache
def _say_once(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)


def make_sampling(decode: DecodeConfig) -> Sampling:
    """The target distribution that a config asks for."""
    return Sampling(decode.temperature, decode.top_k, decode.top_p)
