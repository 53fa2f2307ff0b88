"""A model opened for decoding: text in, text out."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from ssjax.config import Config, DecodeConfig, ranges
from ssjax.config.arguments import read_changes, read_count, read_numbers, read_path, read_seeds
from ssjax.config.checks import validate_decode
from ssjax.data import pipeline
from ssjax.data.prompts import Prompt, check_filled, is_chat, read_chat, read_prompts
from ssjax.data.tasks import ChatTask, Task, task_of_run
from ssjax.data.tokenizers.tokenizer import Tokenizer, same_tokens
from ssjax.decoding import ways
from ssjax.decoding.acceptance import RULES
from ssjax.decoding.completion import Completion, mark_runs, not_finite
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.decoding.drafters import Drafter, Way, make_drafter
from ssjax.decoding.request import make_request
from ssjax.decoding.stop_strings import cut_at_stop, settled
from ssjax.decoding.ways import Situation
from ssjax.errors import UserError
from ssjax.messages import say, say_once
from ssjax.models.axes import moved
from ssjax.models.lora import merge_lora, merged_adaptation
from ssjax.parallel import accelerators, partitioning
from ssjax.weights.load import Trained, load_trained, make_model


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a prompt became.

    >>> [answer] = ssjax.load("runs/first").generate("#Person1#: Hello!", max_new_tokens=4)
    >>> answer.prompt, len(answer.completion.tokens) <= 4
    ('#Person1#: Hello!', True)
    """

    prompt: Prompt  # as given
    text: str
    completion: Completion
    acceptance: str = RULES["exact"]  # the rule that kept drafts

    @property
    def tokens_per_call(self) -> float:
        """Tokens that decode passes emitted, per pass; 0 if there was no pass."""
        return sum(self.completion.runs[1:]) / max(self.completion.calls, 1)

    def __repr__(self) -> str:
        completion, text = self.completion, self.text
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return (
            f"Answer({text!r}, {completion.finish}, {len(completion.tokens)} tokens, "
            f"{self.tokens_per_call:.2f} a pass)"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with its tokenizer and settings, ready to decode.

    >>> run = ssjax.load("runs/first")
    >>> run
    Run('runs/first', step 2, task dialogsum, 54,784 parameters, float32, 3 streams)
    >>> pieces = run.stream("#Person1#: Hello!", max_new_tokens=4)
    >>> "".join(pieces) == run.generate("#Person1#: Hello!", max_new_tokens=4)[0].text
    True
    """

    workdir: Path
    step: int  # of the checkpoint; 0 where there is none
    config: Config
    task: Task
    tokenizer: Tokenizer
    decoder: Decoder

    def __repr__(self) -> str:
        return (
            f"Run({str(self.workdir)!r}, step {self.step}, task {self.config.data.task}, "
            f"{self.decoder.num_parameters:,} parameters, {self.dtype}, "
            f"{self.config.streams.num_streams} streams)"
        )

    def generate(
        self,
        inputs: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        raw: bool = False,
        seeds: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
        log_probs: bool = False,
        calibration: bool = True,
        **changes,
    ) -> list[Answer]:
        """Decodes inputs; every output is what plain decoding would give, unless accept="typical".

        Args:
          inputs: one prompt or several: a text for this task, e.g. a dialogue (with raw, a whole
            prompt), token ids, which are used as they are, or for chats a list of messages.
          raw: texts are used as they are, without the task's prompt format.
          seeds: one for each input, in place of the config's for all; an input then has the
            same samples whatever the others are.
          numbers: places of the inputs among more, which samples and messages go by; None: from 0.
          log_probs: also keep the log-probabilities of the tokens, see `Completion`.
          calibration: see `way`.
          **changes: fields of `DecodeConfig`, e.g. max_new_tokens=20, drafter="plain", stop="END".

        Returns:
          An answer for each prompt, in their order; a list of one for one prompt. Where the model's
          output was not finite, its finish is "error", and a line on stderr names the prompt.

        Raises:
          UserError: an empty input, or an argument that cannot work, by its name.
        """
        changes = read_changes(changes)
        decode = self.decode_config(**changes)
        inputs = read_prompts(inputs, self.decoder.model.config.vocab_size, "inputs")
        check_filled(inputs)
        seeds, numbers = read_seeds(seeds, len(inputs)), read_numbers(numbers, len(inputs))
        batch_size = min(decode.batch_size, max(len(inputs), 1))
        way = self.way(changes, batch_size, calibration=calibration)
        request = make_request(
            decode,
            self._encoded(inputs, numbers, raw),
            seed=decode.seed if seeds is None else seeds,
            batch_size=batch_size,
            log_probs=log_probs,
            numbers=numbers,
        )
        completions = self.decoder.generate(request, way)
        answers = []
        for number, prompt, completion in zip(numbers, inputs, completions, strict=True):
            completion, text = self.finish(completion, decode.stop)
            _say_failed(completion, number)
            answers.append(Answer(prompt, text, completion, RULES[decode.accept]))
        return answers

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        log_probs: bool = False,
        calibration: bool = True,
        **changes,
    ) -> Answer:
        """The model's reply to a conversation, through the tokenizer's chat template.

        Args:
          messages: at least one, {"role": "system", "user" or "assistant", "content": a text}.
          the others: as in `generate`.

        Raises:
          UserError: no messages, a model whose task is no chat, or an argument that cannot work.
        """
        chat = read_chat(messages, "messages")
        [answer] = self.generate([chat], log_probs=log_probs, calibration=calibration, **changes)
        return answer

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        *,
        raw: bool = False,
        number: int = 0,
        passes: int = 1,
        calibration: bool = True,
        **changes,
    ) -> Iterator[str]:
        """Decodes one prompt and yields pieces of its text, none empty, as soon as they are known.

        Joined they are the text that `generate` returns. Arguments and errors are those of
        `stream_answers`.
        """
        shown = 0
        for answer in self.stream_answers(
            prompt, raw=raw, number=number, passes=passes, calibration=calibration, **changes
        ):
            if len(answer.text) > shown:
                yield answer.text[shown:]
                shown = len(answer.text)

    def stream_answers(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        *,
        raw: bool = False,
        number: int = 0,
        passes: int = 1,
        calibration: bool = True,
        **changes,
    ) -> Iterator[Answer]:
        """Decodes one prompt and yields the answer while it grows.

        The text of each answer begins with that of the one before, and the last answer is that of
        `generate`. Held back meanwhile: a character of which bytes are missing, and what may be
        the beginning of a stop string. Nothing is decoded after a stop string.

        Args:
          prompt: one of those that `generate` takes.
          number: place among the inputs of `generate`, which samples depend on.
          passes: decode passes between two answers.
          the others: as in `generate`.

        Raises:
          UserError: an empty prompt, or a setting that cannot work.
        """
        changes = read_changes(changes)
        decode = self.decode_config(**changes)
        prompts = read_prompts(prompt, self.decoder.model.config.vocab_size, "prompt")
        check_filled(prompts)
        if len(prompts) != 1:
            raise UserError(f"prompt holds {len(prompts)} prompts; stream decodes one at a time")
        number = read_count(number, "number", least=0)
        passes = read_count(passes, "passes", least=1)
        way = self.way(changes, 1, calibration=calibration)
        encoded = self._encoded(prompts, [number], raw)
        request = make_request(decode, encoded, batch_size=1, numbers=[number])
        for completion in self.decoder.stream(request, way, passes=passes):
            completion, found = self.finish(completion, decode.stop)
            if completion.finish == "unfinished":
                found = settled(found, decode.stop)
            _say_failed(completion, number)
            yield Answer(prompts[0], found, completion, RULES[decode.accept])
            if completion.finish == "stop":
                return

    def finish(self, completion: Completion, stops: Sequence[str]) -> tuple[Completion, str]:
        """What a completion is to the user: cut at stop strings, and its text."""
        decode_text = self.tokenizer.decode_continuation
        completion, text = cut_at_stop(completion, decode_text, stops)
        return completion, pipeline.without_space(text)

    def mark_runs(self, completion: Completion, text: str) -> str:
        """A text with what each pass emitted in brackets: "[A][ b c][ d]".

        Args:
          completion, text: of an answer; what a stop string cut off is not shown.
        """
        decode_text = self.tokenizer.decode_continuation
        whole = decode_text(completion.tokens)
        space = len(whole) - len(pipeline.without_space(whole))
        return mark_runs(completion, lambda ids: decode_text(ids)[: space + len(text)])

    def configured_way(self, decode: DecodeConfig) -> Way:
        """The way to decode that the settings ask for; a draft model is read.

        Raises:
          UserError: the model cannot draft so, or the draft model does not belong to it.
        """
        if decode.drafter != "draft_model":
            return Way(make_drafter(decode, self.config.streams), decode.deferred)
        draft = load(decode.draft_model, mesh=self.decoder.mesh, int8=self.decoder.int8)
        if not same_tokens(draft.tokenizer, self.tokenizer):
            raise UserError(
                f"{decode.draft_model} has another tokenizer than {self.workdir}; train the draft "
                f"model with --config.data.tokenizer={self.workdir}"
            )
        if draft.config.streams.main_reads_streams:
            raise UserError(
                f"{decode.draft_model} reads its own streams and cannot draft without them; give a "
                "model with streams.main_reads_streams=False"
            )
        drafter = ModelDrafter(draft.decoder.model, decode.num_nodes)
        return Way(drafter, decode.deferred, draft.decoder.params)

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
        if calibration and num_streams and not ways.DRAFTING_KEYS & changes.keys():
            found, line = ways.find(self.workdir, self.situation, batch_size)
            say_once(line)
        return found or self.configured_way(decode)

    def known_ways(
        self, changes: Mapping, *, calibration: bool = True
    ) -> tuple[dict[int, Way], dict[Drafter, float]]:
        """What calibration knows, where `way` looks at it: see `ways.known`."""
        if calibration and not ways.DRAFTING_KEYS & changes.keys():
            return ways.known(self.workdir, self.situation)
        return {}, {}

    @property
    def dtype(self) -> str:
        """What is computed in, and what weights are held in where that is another."""
        dtype = self.config.model.dtype
        return f"{dtype}, weights in int8" if self.decoder.int8 else dtype

    @property
    def situation(self) -> Situation:
        """What a calibration of this model holds for."""
        mesh = self.decoder.mesh
        kind = mesh.devices.flat[0].device_kind
        return Situation(
            device=kind if mesh.size == 1 else f"{mesh.size} x {kind}",
            dtype=self.dtype,
            step=self.step,
            num_streams=self.config.streams.num_streams,
        )

    def _encoded(self, prompts, numbers, raw) -> list[list[int]]:
        encoded = []
        for number, prompt in zip(numbers, prompts, strict=True):
            try:
                encoded.append(self.encode_prompt(prompt, raw=raw))
            except UserError as error:
                raise UserError(f"prompt {number + 1}: {error}") from None
        return encoded

    def encode_prompt(self, text: Prompt, *, raw: bool) -> list[int]:
        """Prompt ids of an input as in training; nothing is cut.

        Raises:
          UserError: a chat where the task is none, or one that the chat template rejects.
        """
        if is_chat(text):
            if raw or not isinstance(self.task, ChatTask):
                kind = "raw prompts" if raw else f"the task {self.task.name}"
                raise UserError(f"messages are for chats, not for {kind}; give a text")
            return self.task.prompt_ids({"messages": json.dumps(text)}, self.tokenizer)
        if not isinstance(text, str):
            return list(text)
        if raw:
            return [*self.tokenizer.prefix_ids, *self.tokenizer.encode(text)]
        return self.task.prompt_ids(self.task.record_from_input(text), self.tokenizer)

    def decode_config(self, **changes) -> DecodeConfig:
        """The run's decode settings with some of them changed, validated.

        Raises:
          UserError: an unknown field or a value that cannot work.
        """
        values = dataclasses.asdict(self.config.decode) | changes
        decode = ranges.build(DecodeConfig, values, "decode.")
        validate_decode(decode, self.config.streams)
        return decode


def load(
    workdir: str | Path,
    checkpoint_name: str = "latest",
    *,
    adapter: str | Path | None = None,
    base: str | Path | None = None,
    mesh: Mesh | None = None,
    int8: bool = False,
) -> Run:
    """Opens a run, an exported or converted model, or a Hugging Face directory for decoding.

    Args:
      workdir: of `python -m ssjax.train`, or another directory that `weights.load` knows.
      checkpoint_name: "latest", "best" (by checkpoint.best_by), or a step.
      adapter: of `python -m ssjax.export --format adapter`, put on the base of workdir.
      base: where the base weights are now; None: where they were in training.
      mesh: that the weights are divided over; None: the first device.
      int8: decode with the large matrices in eight bits, see `models.int8`: another model.

    Raises:
      UserError: nothing there that can be decoded.
    """
    workdir = read_path(workdir, "workdir")
    adapter = None if adapter is None else read_path(adapter, "adapter")
    trained = load_trained(workdir, str(checkpoint_name), adapter=adapter, base=base, mesh=mesh)
    return open_run(trained, mesh, int8)


def open_run(
    trained: Trained, mesh: Mesh | None = None, int8: bool = False, *, folded: bool = True
) -> Run:
    """A `Run` from weights that are in memory, on the first device or divided over a mesh.

    Adapters of main rows are folded into the weights: decoding costs no more than the base model.

    Args:
      trained: the weights.
      mesh: that the run decodes on, of the devices that hold the weights, which move there; None:
        the first device, where they are.
      int8: hold the large matrices in eight bits.
      folded: as said; otherwise they stay apart, and logits are the same up to rounding.

    Raises:
      UserError: the mesh cannot divide the model.
    """
    say_once(accelerators.fallback_line())
    config, tokenizer = trained.config, trained.tokenizer
    params = trained.params
    if mesh is not None:
        partitioning.check_model(config.model, mesh)
        params = moved(params, config.model, mesh)
    model = make_model(config, tokenizer)
    if folded:
        params = merge_lora(params, config.adaptation)
        model = model.clone(adaptation=merged_adaptation(config.adaptation))
    decoder = Decoder(
        model,
        params,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        prompt_buckets=config.decode.prompt_buckets,
        mesh=mesh,
        int8=int8,
    )
    task = task_of_run(config.data.task, trained.directory)
    return Run(trained.directory, trained.step, config, task, tokenizer, decoder)


def _say_failed(completion: Completion, number: int) -> None:
    if completion.finish == "error":
        say(not_finite(completion, number + 1))
