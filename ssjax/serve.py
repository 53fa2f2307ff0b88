"""Serves a model over HTTP, as OpenAI's API has it, many requests in one compiled loop.

    python -m ssjax.serve --workdir RUN
    python -m ssjax.serve --workdir RUN --slots 32 --host 0.0.0.0 --port 8080 --api_key_file FILE
    python -m ssjax.serve --workdir BASE --adapter sums=DIR --adapter sql=DIR --adapter_root DIR

Paths: / (a page), /v1/completions, /v1/chat/completions, /v1/models, /v1/load_lora_adapter,
/v1/unload_lora_adapter, /tokenize, /detokenize, /health, /ready, /metrics. What a request does not
say is as in `ssjax.generate` with the same flags, except that samples differ from request to
request unless it has a seed. Needs the extra "serve".

SIGTERM and Ctrl-C end it once what was accepted is answered, at the latest after --drain_seconds.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ssjax.cli import model_flags, options, start
from ssjax.decoding.sampling import make_sampling
from ssjax.errors import UserError
from ssjax.files.reading import read_bytes
from ssjax.messages import say
from ssjax.run import Run
from ssjax.serving.adapters import Adapters, check_name, open_adapters
from ssjax.serving.engine import Engine
from ssjax.serving.extras import Extras
from ssjax.serving.grammar import Grammars
from ssjax.serving.limits import EngineLimits
from ssjax.serving.sizes import make_sizes, row_counts

_MODEL = model_flags.define_model_flags(adapter=False, distributed=False)
_ADAPTERS = flags.DEFINE_multi_string(
    "adapter",
    [],
    "NAME=DIR: an adapter of ssjax.export --format adapter that requests may name as their model; "
    "may be given again.",
)
_ADAPTER_ROOT = flags.DEFINE_string(
    "adapter_root", None, "Directory with adapters that clients may load and unload."
)
_MAX_ADAPTERS = options.define_count("max_adapters", 8, "Adapters that are held at once.")
_SLOTS = options.define_count("slots", 16, "Requests that are answered at once.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; default: this machine.")
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen on; 0: a free one.", lower_bound=0, upper_bound=65535
)
_NAME = flags.DEFINE_string(
    "model_name", None, "What clients call the model; default: the name of its directory."
)
_KEY_FILE = flags.DEFINE_string(
    "api_key_file", "", "File with the key that every path but /health then needs."
)
_RAW = flags.DEFINE_bool("raw", False, "Use prompts as they are, without the task's format.")
_WAITING = options.define_count("max_waiting", 256, "Requests that wait; more are refused.")
_PROMPT = options.define_count(
    "max_prompt_tokens", None, "Longest prompt, tokens; default: the largest prompt bucket."
)
_OUTPUT = options.define_count(
    "max_output_tokens", None, "Longest output, tokens; default: max_new_tokens."
)
_BODY = options.define_count("max_body_bytes", 2**20, "Largest body of a request.")
_HEAD = options.define_count("max_head_bytes", 2**14, "Largest head of a request, its headers.")
_RECEIVE_SECONDS = options.define_count(
    "receive_seconds", 30, "That a request may take to come, head and body."
)
_HOSTS = flags.DEFINE_list(
    "allowed_hosts",
    None,
    "Names by which clients may call the server, as in the Host header, without ports; default: "
    "those of this machine if --host is one of them, or else any.",
)
_REQUEST_SECONDS = options.define_count(
    "request_seconds", 0, "That a request may take, waiting included; 0: any.", least=0
)
_DRAIN = options.define_count("drain_seconds", 30, "For the last answers, after a signal.")
_STEPS = options.define_count(
    "steps_per_call", 4, "Decode passes between two looks at who comes and who is done."
)
_JSON = options.define_output("json", "Write the URL to this file once the port is taken.")
_PREFILL = options.define_count(
    "prefill_tokens",
    2048,
    "Prompt tokens, padding included, that are read between two looks while others wait for their "
    "next tokens; at least one prompt is, or one piece.",
)
_PIECE = options.define_count(
    "prefill_piece",
    0,
    "Tokens of a prompt that are read at a time, so that a long one is read between passes of "
    "others; 0: all of them.",
    least=0,
)
_PREFIXES = options.define_count(
    "prefix_cache_mb",
    0,
    "Megabytes of the device for beginnings of prompts, which are then read once; needs "
    "--prefill_piece. 0: none.",
    least=0,
)
_STRUCTURED = flags.DEFINE_bool(
    "structured_output",
    True,
    "Serve response_format and structured_outputs.",
)
_PENALTIES = flags.DEFINE_bool(
    "request_penalties",
    True,
    "Requests may choose penalties.",
)
_LIKELIEST = options.define_count(
    "max_logprobs",
    20,
    "Likeliest tokens whose log-probabilities a request may ask for; with 0, no request penalties "
    "and no structured output less is compiled.",
    least=0,
)
_CHANGES = options.define_decode_flags(batches=False)
_CALIBRATION = options.define_calibration_flag()

# Ids besides the tokenizer's own that a request may name as the end of its output.
_MORE_EOS_IDS = 8


def main() -> int:
    """Serves the model of the command line; returns the exit code."""
    try:
        from ssjax.serving import server
        from ssjax.serving.app import AppLimits, make_app
        from ssjax.serving.figures import Figures
        from ssjax.serving.guard import allowed_hosts
        from ssjax.serving.service import Service
    except ModuleNotFoundError as error:
        raise UserError(
            f'serving needs {error.name}; install the extra: pip install "ssjax[serve]"'
        ) from None
    key = _read_key(_KEY_FILE.value) if _KEY_FILE.value else None
    changes = options.given(_CHANGES)
    adapters, given = None, _given_adapters(_ADAPTERS.value)
    if given or _ADAPTER_ROOT.value is not None:
        adapters = _open_adapters(given, changes)
    run = _MODEL.open() if adapters is None else adapters.run
    decode = run.decode_config(**changes)
    if decode.accept != "exact":
        raise UserError(
            "accept is typical, but only exact acceptance is served; set --accept=exact"
        )
    engine = _engine(run, decode, changes, adapters)
    name = _NAME.value or run.workdir.resolve().name
    for adapter, directory in given.items():
        check_name(adapter, name)
        adapters.add(adapters.open(adapter, directory, engine.sampling))
    service = Service(run, engine, name, decode, _RAW.value, _REQUEST_SECONDS.value)
    figures = Figures(engine, name)
    engine.on_end = figures.observe
    limits = AppLimits(_BODY.value, _WAITING.value)
    hosts = allowed_hosts(_HOST.value, _HOSTS.value)
    app = make_app(service, figures, limits, api_key=key, hosts=hosts)
    server.serve(
        app,
        engine,
        server.Address(_HOST.value, _PORT.value),
        server.Patience(_HEAD.value, _RECEIVE_SECONDS.value),
        drain_seconds=_DRAIN.value,
        on_listening=_tell,
    )
    return 0


def _tell(url: str) -> None:
    say(f"listening on {url}")
    options.write_json(_JSON.value, {"url": url})


def _given_adapters(values: Sequence[str]) -> dict[str, Path]:
    """Directories by name. Raises: UserError: a value that is not NAME=DIR, or a name twice."""
    found = {}
    for value in values:
        name, _, directory = value.partition("=")
        if not name or not directory or name in found:
            raise UserError(f"--adapter={value} must be NAME=DIR, with another name each time")
        found[name] = Path(directory)
    return found


def _open_adapters(given: dict[str, Path], changes) -> Adapters:
    if _MODEL.mesh is not None and _MODEL.mesh.size > 1:
        raise UserError("adapters are served on one device; leave --mesh out")
    root = None if _ADAPTER_ROOT.value is None else Path(_ADAPTER_ROOT.value)
    if root is not None and not root.is_dir():
        raise UserError(f"--adapter_root={root} is no directory")
    return open_adapters(
        _MODEL.read(),
        given,
        root=root,
        max_adapters=_MAX_ADAPTERS.value,
        changes=changes,
        int8=_MODEL.int8,
    )


def _engine(run: Run, decode, changes, adapters: Adapters | None) -> Engine:
    longest_prompt = _PROMPT.value or max(decode.prompt_buckets)
    limits = EngineLimits(
        num_slots=_SLOTS.value,
        max_waiting=_WAITING.value,
        max_prompt_tokens=longest_prompt,
        max_new_tokens=max(_OUTPUT.value or 0, decode.max_new_tokens),
        max_eos_ids=len(run.decoder.eos_ids) + _MORE_EOS_IDS,
        passes_per_round=_STEPS.value,
        prefill_tokens=_PREFILL.value,
        prefill_piece=_PIECE.value,
        prefix_bytes=_PREFIXES.value * 10**6,
    )
    way = run.way(changes, _SLOTS.value, calibration=_CALIBRATION.value)
    mesh, slots = run.decoder.mesh, _SLOTS.value
    # Rows that are divided over devices are not taken apart.
    divided = mesh.shape["data"] * mesh.shape["fsdp"] > 1
    known = run.known_ways(changes, calibration=_CALIBRATION.value)
    sizes = make_sizes(way, [slots] if divided else row_counts(slots), *known)
    grammars = None
    if _STRUCTURED.value:
        grammars = Grammars(run.tokenizer, run.decoder.model.config.vocab_size)
    most = min(_LIKELIEST.value, run.decoder.model.config.vocab_size)
    extras = Extras(tuple(sizes), grammars, _PENALTIES.value, most)
    return Engine(run.decoder, way, make_sampling(decode), limits, extras, adapters)


def _read_key(path: str) -> str:
    """The first line of a file. Raises: UserError: there is none."""
    key = read_bytes(path).decode(errors="replace").strip()
    if not key or "\n" in key or not key.isascii():
        raise UserError(f"{path} must hold one line, the key, in ASCII")
    return key


if __name__ == "__main__":
    start.run(main)
