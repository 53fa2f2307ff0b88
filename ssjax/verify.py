"""The losslessness certificate of a run: checks what its mode promises, on its own prompts.

    python -m ssjax.verify --workdir RUN
    python -m ssjax.verify --workdir RUN --prompts_file FILE --num_prompts 200 --json OUT

Checked:
    float32     speculative output equals plain output token for token, for the run's drafter with
                streams deferred and beside every node
    lossless    the float32 output equals that of the untouched base model, read anew
    bfloat16    (runs that compute in it) outputs may differ where rounding swaps two tokens: both
                are replayed in float32, and at each first difference the margin between the best
                two logits must be within twice the rounding noise of that replay
    sampling    tokens sampled with drafts fit the model's own distribution (chi-square)

A shared or full run is a new model: it is certified against its own plain decoding, never
against the base. Exit status 0: every promise holds; 1: one does not; 2: bad input.
"""

from absl import flags

from ssjax import cli
from ssjax.data import builders, pipeline
from ssjax.data.prompt_files import is_blank
from ssjax.errors import UserError
from ssjax.evaluation import certificates
from ssjax.run import Run, open_run
from ssjax.weights.load import load_trained

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory of ssjax.train.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_ADAPTER = flags.DEFINE_string("adapter", None, "Of ssjax.export --format adapter.")
_BASE = flags.DEFINE_string("base", None, "Where the base weights are now; default: as trained.")
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "Whose prompts, unless given."
)
_NUM_PROMPTS = cli.define_count("num_prompts", 50, "Prompts, at most.")
_NUM_SAMPLES = cli.define_count("num_samples", 4, "Samples per prompt.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the samples.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Longest output; default: the run's."
)
_ACCEPT = flags.DEFINE_enum(
    "accept", None, ["exact", "typical"], "In place of the run's; only exact can be certified."
)
_JSON = cli.define_output("json", "Also write the certificate to this file.")
_PROMPTS = cli.define_prompt_flags()
flags.adopt_module_key_flags(cli)


def main() -> int:
    """Certifies the run of the command line; returns the exit code."""
    changes = cli.given({"max_new_tokens": _MAX_NEW_TOKENS, "accept": _ACCEPT})
    temperature = cli.given({"temperature": _TEMPERATURE})["temperature"]
    if temperature == 0:
        raise UserError("--temperature must be above 0: samples are checked besides greedy output")
    trained = load_trained(
        _WORKDIR.value, _CHECKPOINT.value, adapter=_ADAPTER.value, base=_BASE.value
    )
    streams = trained.config.streams
    if streams.num_streams == streams.medusa_heads == 0:
        raise UserError(
            f"{_WORKDIR.value} has no streams: it decodes plainly, with nothing to check"
        )
    run = open_run(certificates.in_float32(trained))
    result = certificates.certify(
        trained,
        read_prompts(run),
        run.decode_config(**changes),
        temperature=temperature,
        num_samples=_NUM_SAMPLES.value,
        base_name=_BASE.value,
    )
    cli.write_json(_JSON.value, result)
    certificates.show(result)
    return 0 if result["holds"] else 1


def read_prompts(run: Run) -> list[list[int]]:
    """Ids of the prompts of the command line, or of a split of the run's data."""
    if _PROMPTS.given:
        texts = [prompt for prompt in _PROMPTS.read() if not is_blank(prompt)]
        texts = texts[: _NUM_PROMPTS.value]
        return [run.encode_prompt(text, raw=_PROMPTS.raw) for text in texts]
    data = run.config.data
    source = builders.open_source(
        data.task, data.path, data.prepared_dir, run.config.seed, _SPLIT.value
    )
    examples = pipeline.decode_examples(
        source, run.task, run.tokenizer, data.max_prompt_length, _NUM_PROMPTS.value
    )
    return [list(example.prompt_ids) for example in examples]


if __name__ == "__main__":
    cli.run(main)
