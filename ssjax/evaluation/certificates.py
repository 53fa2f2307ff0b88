"""The losslessness certificate: what is checked for each mode, and how it is shown."""

import dataclasses

import jax.numpy as jnp
from rich.console import Console

from ssjax.config import AdaptationConfig, DecodeConfig
from ssjax.decoding.decoder import Decoder, check_finite
from ssjax.decoding.drafters import Drafter, PlainDrafter, make_drafter
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.evaluation import evidence
from ssjax.evaluation.evidence import Difference
from ssjax.models.parameters import cast
from ssjax.models.transformer import Transformer
from ssjax.run import make_sampling, open_run
from ssjax.weights.base import open_base
from ssjax.weights.load import Trained, base_only, make_model

# A right decoder fails the test of sampling once in this many certificates.
_P_VALUE = 1e-4


def certify(
    trained: Trained,
    prompts: list[list[int]],
    decode: DecodeConfig,
    *,
    temperature: float = 1.0,
    num_samples: int = 4,
    base_name: str | None = None,
) -> dict:
    """All checks that the mode of a run calls for.

    Args:
      trained: the model as it was trained.
      prompts: ids.
      decode: settings of the drafter, penalties and bans, and the longest output.
      temperature: of the samples.
      num_samples: per prompt.
      base_name: where the base is now; None: where it was.

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
    config = trained.config
    mode, dtype = config.adaptation.mode, config.model.dtype
    drafter = make_drafter(decode, config.streams)
    exact = in_float32(trained)
    exact_run = open_run(exact)

    sampling = dataclasses.replace(make_sampling(decode), temperature=temperature)
    greedy = dataclasses.replace(sampling, temperature=0.0)

    def outputs(
        decoder: Decoder, drafter: Drafter, deferred=True, sampling=greedy, repeat=1, seed=0
    ):
        completions = decoder.generate(
            [prompt for prompt in prompts for _ in range(repeat)],
            decode.max_new_tokens, drafter=drafter, sampling=sampling,
            deferred=deferred, batch_size=decode.batch_size, seed=seed,
        )  # fmt: skip
        for number, completion in enumerate(completions):
            check_finite(completion, 1 + number // repeat)
        return [completion.tokens for completion in completions]

    checks = {}
    plain = outputs(exact_run.decoder, PlainDrafter())
    orders = [False] if config.streams.main_reads_streams else [True, False]
    for deferred in orders:
        name = "float32_deferred" if deferred else "float32_beside_every_node"
        differences = evidence.first_differences(
            plain, outputs(exact_run.decoder, drafter, deferred)
        )
        checks[name] = _equality(differences, len(prompts))
    if mode == "lossless":
        base, source = _base_decoder(exact, base_name)
        differences = evidence.first_differences(outputs(base, PlainDrafter()), plain)
        checks["equals_base"] = _equality(differences, len(prompts)) | {"base": source}
    width = max(map(len, prompts)) + decode.max_new_tokens
    exact_replay = _make_replay(exact_run.decoder, sampling)
    if dtype == "bfloat16":
        run = open_run(trained)
        rounded = _make_replay(run.decoder, sampling)
        narrow_plain = outputs(run.decoder, PlainDrafter())
        differences = evidence.first_differences(narrow_plain, outputs(run.decoder, drafter))
        explained = evidence.explain(
            differences, prompts, narrow_plain, exact_replay, rounded, width
        )
        checks["bfloat16"] = {
            "holds": all(e.is_rounding for e in explained),
            "prompts": len(prompts),
            "divergence_rate": len(differences) / len(prompts),
            "margins": [e.margin for e in explained],
            "noise": [e.noise for e in explained],
        }
    repeat = num_samples
    sampled = outputs(exact_run.decoder, drafter, True, sampling, repeat, decode.seed + 1)
    repeated = [prompt for prompt in prompts for _ in range(repeat)]
    fit = evidence.goodness_of_fit(repeated, sampled, exact_replay, sampling, width)
    checks["sampling"] = {
        "holds": fit.p_value > _P_VALUE,
        "temperature": sampling.temperature,
        **dataclasses.asdict(fit),
    }
    return {
        "workdir": str(trained.directory),
        "step": trained.step,
        "mode": mode,
        "main_reads_streams": config.streams.main_reads_streams,
        "promise": _promise(mode),
        "dtype": dtype,
        "draft_nodes": drafter.num_nodes - 1,
        "max_new_tokens": decode.max_new_tokens,
        "checks": checks,
        "holds": all(check["holds"] for check in checks.values()),
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
    return "a new model, not compared with its base; drafts do not change what it says"


def _equality(differences: list[Difference], num_prompts: int) -> dict:
    first = dataclasses.asdict(differences[0]) if differences else None
    return {
        "holds": not differences,
        "prompts": num_prompts,
        "identical": num_prompts - len(differences),
        "first": first,
    }


def in_float32(trained: Trained) -> Trained:
    """The same weights, computed with in float32."""
    model = dataclasses.replace(trained.config.model, dtype="float32")
    config = dataclasses.replace(trained.config, model=model)
    return dataclasses.replace(trained, config=config, frozen=cast(trained.frozen, jnp.float32))


def _make_replay(decoder: Decoder, sampling: Sampling):
    replay = evidence.make_replay(decoder.model, decoder.params)
    return evidence.adjusted(replay, sampling, decoder.eos_ids)


def _base_decoder(trained: Trained, name: str | None) -> tuple[Decoder, str]:
    """A decoder of the untouched base model, and where its weights came from."""
    config = trained.config
    try:
        base = open_base(name or config.model.pretrained, "float32")
        params = base.read_params(config.streams.num_stream_layers, jnp.float32)
        source = base.name
    except UserError:
        params, source = base_only(trained), "the frozen weights in this directory"
    streams = dataclasses.replace(
        config.streams, num_streams=0, init_rank=0, exit_rank=0, medusa_heads=0
    )
    tokenizer = trained.tokenizer
    model = Transformer(make_model(config, tokenizer).config, streams, True, AdaptationConfig())
    decoder = Decoder(
        model, params, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
        prompt_buckets=config.decode.prompt_buckets,
    )  # fmt: skip
    return decoder, source
