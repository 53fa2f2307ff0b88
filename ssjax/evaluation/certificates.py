"""The losslessness certificate: what is checked for each mode, and how it is shown."""

import contextlib
import dataclasses
import functools

import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from ssjax.config import AdaptationConfig, DecodeConfig
from ssjax.decoding.completion import check_finite
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import Drafter, PlainDrafter, Way, make_drafter
from ssjax.decoding.request import Request, make_request
from ssjax.decoding.sampling import Sampling, make_sampling
from ssjax.errors import UserError
from ssjax.evaluation import evidence
from ssjax.evaluation.evidence import Difference
from ssjax.messages import say
from ssjax.models.lora import is_of_main_rows, merge_lora
from ssjax.models.parameters import Params, cast, merge, split
from ssjax.models.transformer import Transformer
from ssjax.run import open_run
from ssjax.weights.base import open_base
from ssjax.weights.load import Trained, base_only, holds_weights, make_model

# A right decoder fails the test of sampling once in this many certificates.
_P_VALUE = 1e-4
# By mode, the name of the check against a model that has no streams.
_COMPARED_WITH = {"lossless": "equals_base", "detached": "equals_fine_tune"}


def certify(
    trained: Trained,
    prompts: list[list[int]],
    decode: DecodeConfig,
    *,
    temperature: float = 1.0,
    num_samples: int = 4,
    base_name: str | None = None,
    mesh: Mesh | None = None,
    int8: bool = False,
) -> dict:
    """All checks that the mode of a run calls for.

    Args:
      trained: the model as it was trained.
      prompts: ids.
      decode: settings of the drafter, penalties and bans, and the longest output.
      temperature: of the samples.
      num_samples: per prompt.
      base_name: where the base is now; None: where it was.
      mesh: that the weights are divided over; None: the first device.
      int8: the model is that with its large matrices in eight bits.

    Raises:
      UserError: a lossy rule of acceptance, or the model's output for a prompt is not finite.

    Returns:
      Plain values: mode, what is promised, the checks, and whether all of them hold.
    """
    if decode.accept != "exact":
        raise UserError(
            f"decode.accept {decode.accept!r} is lossy, there is nothing to certify; verify exact "
            "acceptance with --accept=exact"
        )
    if decode.drafter == "draft_model":
        say("decode.drafter is draft_model: what this model drafts itself is certified instead")
        decode = dataclasses.replace(decode, drafter="auto", draft_model="")
    config = trained.config
    mode, drafter = config.adaptation.mode, make_drafter(decode, config.streams)
    exact = in_float32(trained)
    subject = _Subject(open_run(exact, mesh, int8).decoder, drafter, prompts, decode, temperature)
    checks = _drafts_change_nothing(subject)
    if mode in _COMPARED_WITH:
        checks[_COMPARED_WITH[mode]] = _equals_base(subject, exact, base_name)
    if config.model.dtype == "bfloat16":
        rounded = dataclasses.replace(subject, decoder=open_run(trained, mesh, int8).decoder)
        checks["bfloat16"] = _differs_by_rounding(subject, rounded)
    checks["sampling"] = _samples_fit(subject, num_samples)
    return {
        "workdir": str(trained.directory),
        "step": trained.step,
        "mode": mode,
        "main_reads_streams": config.streams.main_reads_streams,
        "promise": _promise(mode),
        "dtype": config.model.dtype,
        "weights": "int8" if int8 else config.model.dtype,
        "draft_nodes": drafter.num_nodes - 1,
        "max_new_tokens": decode.max_new_tokens,
        "checks": checks,
        "holds": all(check["holds"] for check in checks.values()),
    }


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A model that is examined, and what it is asked."""

    decoder: Decoder
    drafter: Drafter
    prompts: list[list[int]]  # ids
    decode: DecodeConfig
    temperature: float  # of the samples

    @property
    def sampling(self) -> Sampling:
        """The distribution of the samples; the greedy outputs have its penalties and bans."""
        return dataclasses.replace(make_sampling(self.decode), temperature=self.temperature)

    @property
    def width(self) -> int:
        """Tokens of a prompt with its output, at most."""
        return max(map(len, self.prompts)) + self.decode.max_new_tokens

    @functools.cached_property
    def plain(self) -> list[tuple[int, ...]]:
        """Greedy outputs of plain decoding."""
        return self.greedy(Way(PlainDrafter(), deferred=True))

    @functools.cached_property
    def replay(self) -> evidence.Replay:
        """Teacher-forced logits, with penalties and bans."""
        replay = evidence.make_replay(self.decoder.model, self.decoder.params, self.decoder.mesh)
        return evidence.adjusted(replay, self.sampling, self.decoder.eos_ids)

    def greedy(self, way: Way) -> list[tuple[int, ...]]:
        """Greedy outputs. Raises: UserError: one is not finite."""
        sampling = dataclasses.replace(self.sampling, temperature=0.0)
        request = make_request(self.decode, self.prompts, sampling=sampling, seed=0)
        return self._outputs(request, way, repeat=1)

    def sampled(self, way: Way, repeat: int) -> list[tuple[int, ...]]:
        """`repeat` sampled outputs of each prompt in turn. Raises: UserError: one is not finite."""
        prompts = [prompt for prompt in self.prompts for _ in range(repeat)]
        seed = self.decode.seed + 1
        request = make_request(self.decode, prompts, sampling=self.sampling, seed=seed)
        return self._outputs(request, way, repeat)

    def _outputs(self, request: Request, way: Way, repeat: int) -> list[tuple[int, ...]]:
        completions = self.decoder.generate(request, way)
        for number, completion in enumerate(completions):
            check_finite(completion, 1 + number // repeat)
        return [completion.tokens for completion in completions]


def _drafts_change_nothing(subject: _Subject) -> dict[str, dict]:
    """Outputs with drafts equal plain ones, in every execution order that the model has."""
    checks = {}
    for deferred in subject.decoder.model.streams.orders:
        name = "float32_deferred" if deferred else "float32_beside_every_node"
        drafted = subject.greedy(Way(subject.drafter, deferred))
        checks[name] = _equality(evidence.first_differences(subject.plain, drafted), subject)
    return checks


def _equals_base(subject: _Subject, exact: Trained, base_name: str | None) -> dict:
    """Outputs equal those of the base model or its fine-tune without streams, decoded plainly."""
    decoder, source = _base_decoder(exact, base_name, subject.decoder)
    base = dataclasses.replace(subject, decoder=decoder)
    return _equality(evidence.first_differences(base.plain, subject.plain), base) | {"base": source}


def _differs_by_rounding(exact: _Subject, rounded: _Subject) -> dict:
    """Where bfloat16 outputs with drafts differ from plain ones, rounding can have done it."""
    drafted = rounded.greedy(Way(rounded.drafter, deferred=True))
    differences = evidence.first_differences(rounded.plain, drafted)
    explained = evidence.explain(
        differences, exact.prompts, rounded.plain, exact.replay, rounded.replay, exact.width
    )
    return {
        "holds": all(each.is_rounding for each in explained),
        "prompts": len(exact.prompts),
        "divergence_rate": len(differences) / len(exact.prompts),
        "margins": [each.margin for each in explained],
        "noise": [each.noise for each in explained],
    }


def _samples_fit(subject: _Subject, num_samples: int) -> dict:
    """Outputs sampled with drafts have the model's own distribution."""
    sampled = subject.sampled(Way(subject.drafter, deferred=True), num_samples)
    prompts = [prompt for prompt in subject.prompts for _ in range(num_samples)]
    fit = evidence.goodness_of_fit(
        prompts, sampled, subject.replay, subject.sampling, subject.width
    )
    return {
        "holds": fit.p_value > _P_VALUE,
        "temperature": subject.temperature,
        **dataclasses.asdict(fit),
    }


def show(result: dict) -> None:
    """Prints a certificate to stdout."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"mode {result['mode']}: {result['promise']}")
    for name, check in result["checks"].items():
        verdict = "holds" if check["holds"] else "DOES NOT HOLD"
        console.print(f"{name.replace('_', ' ')}: {verdict} ({_detail(check)})", markup=False)
    console.print("certificate: " + ("every promise holds" if result["holds"] else "FAILED"))


def _detail(check: dict) -> str:
    if "identical" in check:
        detail = f"{check['identical']} of {check['prompts']} outputs identical"
        if check["first"] is not None:
            detail += f", first difference: {check['first']}"
        return detail + (f"; base {check['base']}" if "base" in check else "")
    if "margins" in check:
        margin = max(check["margins"], default=0.0)
        return f"{100 * check['divergence_rate']:.1f} % diverge, largest margin {margin:.4f}"
    return (
        f"chi-square {check['statistic']:.1f} on {check['degrees']} degrees, "
        f"p {check['p_value']:.3f}, {check['num_tokens']:,} tokens at temperature "
        f"{check['temperature']}"
    )


def _promise(mode: str) -> str:
    if mode == "lossless":
        return "outputs are the base model's, token for token"
    if mode == "detached":
        return (
            "outputs are the fine-tuned model's, token for token: no stream took part in its "
            "training, and drafts do not change what it says"
        )
    return "a new model, not compared with its base; drafts do not change what it says"


def _equality(differences: list[Difference], subject: _Subject) -> dict:
    num_prompts = len(subject.prompts)
    return {
        "holds": not differences,
        "prompts": num_prompts,
        "identical": num_prompts - len(differences),
        "first": dataclasses.asdict(differences[0]) if differences else None,
    }


def in_float32(trained: Trained) -> Trained:
    """The same weights, computed with in float32."""
    model = dataclasses.replace(trained.config.model, dtype="float32")
    config = dataclasses.replace(trained.config, model=model)
    return dataclasses.replace(trained, config=config, frozen=cast(trained.frozen, jnp.float32))


def _base_decoder(trained: Trained, name: str | None, like: Decoder) -> tuple[Decoder, str]:
    """A decoder without streams, and where its weights came from.

    Of the untouched base model; in the detached mode with the adapter of main rows. Its weights are
    divided and held like those of `like`.
    """
    config = trained.config
    params, source = _base_params(trained, name, like.mesh)
    if config.adaptation.mode == "detached":
        adapter, _ = split(trained.trainable, is_of_main_rows)
        params = merge_lora(merge(adapter, params), config.adaptation)
    streams = dataclasses.replace(
        config.streams, num_streams=0, init_rank=0, exit_rank=0, medusa_heads=0
    )
    tokenizer = trained.tokenizer
    model = Transformer(make_model(config, tokenizer).config, streams, True, AdaptationConfig())
    decoder = Decoder(
        model,
        params,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        prompt_buckets=config.decode.prompt_buckets,
        mesh=like.mesh,
        int8=like.int8,
    )
    return decoder, source


def _base_params(trained: Trained, name: str | None, mesh: Mesh) -> tuple[Params, str]:
    """Base weights in float32, and where they came from: an export with weights is its own base."""
    config = trained.config
    with contextlib.suppress(UserError):
        if name is not None or not holds_weights(trained.directory):
            base = open_base(name or config.model.pretrained, "float32")
            layers = config.streams.num_stream_layers
            return base.read_params(layers, jnp.float32, mesh), base.name
    return base_only(trained), "the frozen weights in this directory"
