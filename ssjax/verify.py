"""Certifies a run: its outputs are what its mode promises, checked on its own prompts.

    python -m ssjax.verify --workdir RUN
    python -m ssjax.verify --workdir RUN --prompts_file FILE --num_prompts 200 --json OUT

Checked:
    float32     speculative output equals plain output token for token, for the run's drafter with
                streams deferred and beside every node
    lossless    the float32 output equals that of the untouched base model, read anew; of an export
                that holds weights, that of these weights, unless --base names the base
    detached    the float32 output equals that of the base with the adapter of the fine-tune alone
    bfloat16    (runs that compute in it) outputs may differ where rounding swaps two tokens: both
                are replayed in float32, and at each first difference the margin between the best
                two logits must be within twice the rounding noise of that replay
    sampling    tokens sampled with drafts fit the model's own distribution (chi-square)

With --weights int8 all of this is said of the model in eight bits: its base is so, too.
A shared, full or detached run is a new model: it is certified against its own plain decoding,
never against the base. Exit status 0: every promise holds; 1: one does not; 2: bad input.
"""

from absl import flags

from ssjax.cli import model_flags, options, start
from ssjax.data.prompt_files import is_blank
from ssjax.errors import UserError
from ssjax.evaluation import certificates
from ssjax.evaluation.prompts import examples_of
from ssjax.run import Run, open_run

_MODEL = model_flags.define_model_flags()
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "Whose prompts, unless given."
)
_NUM_PROMPTS = options.define_count("num_prompts", 50, "Prompts, at most.")
_NUM_SAMPLES = options.define_count("num_samples", 4, "Samples per prompt.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the samples.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Longest output; default: the run's."
)
_ACCEPT = flags.DEFINE_enum(
    "accept", None, ["exact", "typical"], "In place of the run's; only exact can be certified."
)
_JSON = options.define_output("json", "Also write the certificate to this file.")
_PROMPTS = options.define_prompt_flags()


def main() -> int:
    """Certifies the run of the command line; returns the exit code."""
    changes = options.given({"max_new_tokens": _MAX_NEW_TOKENS, "accept": _ACCEPT})
    temperature = options.given({"temperature": _TEMPERATURE})["temperature"]
    if temperature == 0:
        raise UserError("--temperature must be above 0: samples are checked besides greedy output")
    trained = _MODEL.read()
    streams = trained.config.streams
    if streams.num_streams == streams.medusa_heads == 0:
        raise UserError(
            f"{_MODEL.workdir} has no streams: it decodes plainly, with nothing to check"
        )
    run = open_run(certificates.in_float32(trained), _MODEL.mesh, _MODEL.int8)
    result = certificates.certify(
        trained,
        read_prompts(run),
        run.decode_config(**changes),
        temperature=temperature,
        num_samples=_NUM_SAMPLES.value,
        base_name=_MODEL.base,
        mesh=_MODEL.mesh,
        int8=_MODEL.int8,
    )
    options.write_json(_JSON.value, result)
    certificates.show(result)
    return 0 if result["holds"] else 1


def read_prompts(run: Run) -> list[list[int]]:
    """Ids of the prompts of the command line, or of a split of the run's data."""
    if _PROMPTS.given:
        texts = [prompt for prompt in _PROMPTS.read() if not is_blank(prompt)]
        texts = texts[: _NUM_PROMPTS.value]
        return [run.encode_prompt(text, raw=_PROMPTS.raw) for text in texts]
    examples = examples_of(run, _SPLIT.value, _NUM_PROMPTS.value)
    return [list(example.prompt_ids) for example in examples]


if __name__ == "__main__":
    start.run(main)
