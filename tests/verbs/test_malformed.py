"""Malformed inputs: each ends right, or with one line "error: ..." and exit code 2, 3 or 4.

A seeded sample for every verb: files that are damaged, settings, experiments, flags. Whole inputs
are what the verbs themselves wrote. SSJAX_MALFORMED=20 tries twenty times as many, which takes as
many times as long; SSJAX_MALFORMED_SEED=1 others; SSJAX_MALFORMED_LOG=FILE keeps how each ended.
"""

import dataclasses
import json
import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import damage
import numpy as np
import pytest
import small_tokenizers
import tiny_models
import verb_server
from safetensors.numpy import save_file

from ssjax.config import Config, ranges
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files

TIMES = float(os.environ.get("SSJAX_MALFORMED", 1))
SEED = int(os.environ.get("SSJAX_MALFORMED_SEED", 0))
LOG = os.environ.get("SSJAX_MALFORMED_LOG", "")
LIMIT = 90  # seconds of one process
LONGEST_LINE = 1100
MOST_LINES = 12  # on stderr, those that inform among them

EXPERIMENT = """
from ssjax import config as config_lib

def get_config(variant="tuned"):
    c = config_lib.default_config()
    config_lib.shrink(c)
    c.workdir, c.model.pretrained = "run", "model"
    c.adaptation.mode, c.adaptation.rank = "lossless", 2
    c.streams.num_streams, c.streams.num_stream_layers = 2, 1
    c.data.task, c.data.path, c.data.prepared_dir = "pairs", "data/pairs", "prepared"
    c.data.max_prompt_length, c.data.max_target_length = 16, 16
    c.train.num_steps, c.train.eval_batches = 1, 1
    c.eval.max_records, c.decode.max_new_tokens, c.decode.num_nodes = 1, 2, 2
    c.decode.prompt_buckets = (16,)
    if variant == "scratch":
        c.model.pretrained, c.adaptation.mode = "", "full"
        c.data.tokenizer = "model"
    return c
"""


@pytest.fixture(scope="module")
def server():
    return verb_server.server(JAX_DISABLE_MOST_OPTIMIZATIONS="1", HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> Path:
    """A directory with a model, data, an experiment, a run and every form of export."""
    directory = tmp_path_factory.mktemp("whole")
    write_model(directory / "model")
    for task in DATA:
        write_data(directory / "data", task)
    (directory / "experiment.py").write_text(EXPERIMENT)
    (directory / "prompts.txt").write_text("Anna\nBob wants tea\n")
    (directory / "questions.jsonl").write_text('{"turns": ["Why?", "Why, Anna?"]}\n' * 2)
    for verb, *arguments in (
        ("train", "--config=experiment.py"),
        ("convert", "--source=model", "--target=converted"),
        ("export", "--workdir=run", "--format=hf", "--target=hf"),
        ("export", "--workdir=run", "--format=adapter", "--target=adapter"),
        ("export", "--workdir=run", "--format=orbax", "--target=orbax"),
    ):
        ended = server.call(verb, arguments, directory=directory)
        assert ended.returncode == 0, ended.stderr
    return directory


def write_model(directory: Path) -> None:
    """A Llama of two layers in two files with an index."""
    directory.mkdir()
    width, inner, vocabulary = 16, 24, 512
    values = tiny_models.find("llama").config_json | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    outside = {
        "model.embed_tokens": (vocabulary, width),
        "lm_head": (vocabulary, width),
        "model.norm": (width,),
    }
    layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (8, width),
        "self_attn.v_proj": (8, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    rng, weight_map = np.random.default_rng(0), {}
    for number, more in enumerate((outside, {})):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        shapes = more | {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        tensors = {
            f"{name}.weight": rng.standard_normal(shape, np.float32) / 4
            for name, shape in shapes.items()
        }
        save_file(tensors, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 361]}))
    tokenizer_from_files(small_tokenizers.sentencepiece_chat(), "t").save(directory)


DATA = {
    "pairs": {"prompt": "Anna wants a red coat", "response": " Why, Anna?"},
    "dialogsum": {"fname": "a", "dialogue": "#Person1#: Why?", "summary": "Tea.", "topic": "tea"},
    "sql_context": {
        "context": "CREATE TABLE a (b INTEGER)",
        "question": "How many?",
        "answer": "SELECT COUNT(*) FROM a",
    },
    "chat": {
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Tea."},
        ]
    },
    "e2e_nlg": 'mr,ref\n"name[A], food[B]",A serves B.\nname[C],C.\n',
}


def write_data(directory: Path, task: str) -> None:
    """The three files of a task, of a few records each."""
    (directory / task).mkdir(parents=True)
    if task == "e2e_nlg":
        for name in ("trainset", "devset", "testset_w_refs"):
            (directory / task / f"{name}.csv").write_text(DATA[task])
        return
    lines = [json.dumps(DATA[task] | {"number": number}) for number in range(3)]
    for split in ("train", "validation", "test"):
        (directory / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@dataclasses.dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
      verb: of the command line.
      arguments: after it; paths are relative to a directory with the parts.
      parts: of what is whole, copied there.
      prepare: damages them; says what it did.
    """

    verb: str
    arguments: Sequence[str]
    parts: Sequence[str] = ("experiment.py", "model")
    prepare: Callable[[Path], str] = lambda directory: ""


def fault(code: int | None, stderr: str) -> str:
    """What is wrong with how a process ended; empty: nothing."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code is None:
        return f"does not end within {LIMIT} s"
    if "Traceback" in stderr:
        return "a traceback"
    if code == 0:
        return "an error and exit code 0" if errors else ""
    if code not in (2, 3, 4):
        return f"exit code {code}"
    if len(errors) != 1:
        return f"{len(errors)} lines of errors"
    if len(errors[0]) > LONGEST_LINE or len(lines) > MOST_LINES:
        return f"{len(lines)} lines on stderr, the error has {len(errors[0])} characters"
    return ""


@pytest.fixture
def check(server, whole, tmp_path):
    """Runs cases and fails with a list of those that end badly."""

    def run_all(cases: Sequence[Case]) -> None:
        bad = []
        for number, case in enumerate(cases):
            directory = tmp_path / str(number)
            directory.mkdir()
            for part in case.parts:
                damage.linked_copy(whole / part, directory / part)
            done = case.prepare(directory)
            ended = server.call(case.verb, case.arguments, directory=directory, limit=LIMIT)
            stderr, found = ended.stderr, fault(ended.returncode, ended.stderr)
            if found:
                shown = " ".join(argument[:80] for argument in case.arguments)
                bad.append(f"{found}: {case.verb} {shown} ({done})\n{stderr[-1500:]}")
            if LOG:
                record = [found, ended.returncode, case.verb, case.arguments, done]
                record += [stderr[-4000:], ended.seconds]
                with open(LOG, "a") as file:
                    print(json.dumps(record), file=file)
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode), "a verb replaced the null device"
        assert not bad, f"{len(bad)} of {len(cases)}:\n\n" + "\n\n".join(bad)

    return run_all


def times(count: int) -> range:
    """Numbers of the cases of a kind."""
    return range(max(1, round(count * TIMES)))


def dice_of(*key) -> random.Random:
    """Chance that depends on the kind and number of a case alone."""
    return random.Random(f"{SEED} {key}")


# Files.


def damaged(verb, arguments, parts, patterns, count):
    """Cases with one file damaged, of a pattern chosen among these."""

    def prepare(directory, number):
        dice = dice_of(verb, parts, number)
        paths = sorted(directory.glob(dice.choice(patterns)))
        return damage.damage(dice.choice(paths), dice)

    return [
        Case(verb, arguments, parts, lambda directory, number=number: prepare(directory, number))
        for number in times(count)
    ]


def test_models(check):
    """Of Hugging Face: config, index, weights, tokenizer."""
    patterns = (
        "model/config.json",
        "model/config.json",
        "model/model.safetensors.index.json",
        "model/*.safetensors",
        "model/tokenizer*",
        "model/*_config.json",
    )
    arguments = ("--source=model", "--target=new", "--json=out.json")
    check(damaged("convert", arguments, ("model",), patterns, 26))


def test_runs(check):
    """Of training: config, tokenizer, digest of the base, checkpoints."""
    patterns = (
        "run/config.json",
        "run/*.json",
        "run/tokenizer*",
        "run/checkpoints",
        "run/checkpoints/*",
        "run/checkpoints/1/*",
        "run/checkpoints/1/*/*",
        "run/checkpoints/1/**/*",
    )
    arguments = ("--workdir=run", "--format=hf", "--target=new")
    check(damaged("export", arguments, ("model", "run"), patterns, 16))


@pytest.mark.parametrize(
    ("parts", "patterns"),
    [
        (("hf",), ("hf/*", "hf/ssjax.json", "hf/streams.safetensors")),
        (("adapter", "model"), ("adapter/*", "adapter/ssjax.json", "adapter/*.json")),
        (("orbax", "model"), ("orbax/*.json", "orbax/*", "orbax/params/**/*")),
        (("converted",), ("converted/*.json", "converted/*", "converted/params/**/*")),
    ],
    ids=lambda value: value[0] if "/" not in value[0] else "",
)
def test_exports(check, parts, patterns):
    target = "hf" if parts[0] == "orbax" else "orbax"
    arguments = (f"--workdir={parts[0]}", f"--format={target}", "--target=new")
    check(damaged("export", arguments, parts, patterns, 4))


LONG = ("--config.data.max_prompt_length=99", "--config.data.max_target_length=99")


def test_tokenizers(check):
    """Of every kind, in the model's directory."""
    cases = []
    for kind, make in small_tokenizers.SMALL.items():
        task = "chat" if kind in ("sentencepiece chat", "byte level") else "pairs"
        arguments = (
            "--config=experiment.py",
            f"--config.data.task={task}",
            f"--config.data.path=data/{task}",
            *LONG,
        )

        def prepare(directory, kind, make, number):
            dice = dice_of(kind, number)
            for old in (directory / "model").glob("tokenizer*"):
                old.unlink()
            files = make()
            tokenizer_from_files(files, "t").save(directory / "model")
            return damage.damage(directory / "model" / dice.choice(list(files)), dice)

        cases += [
            Case(
                "show",
                arguments,
                ("experiment.py", "model", "data"),
                lambda directory, some=(kind, make, number), prepare=prepare: prepare(
                    directory, *some
                ),
            )
            for number in times(4)
        ]
    check(cases)


def test_families(check):
    """Values in config.json of every family, as far as the shapes of the train state."""
    cases = []
    for tiny in tiny_models.TINY_MODELS:

        def prepare(directory, tiny, number):
            content = json.dumps(tiny.config_json).encode()
            content, done = damage.odd_json(content, dice_of(tiny.name, number))
            (directory / "model").mkdir()
            (directory / "model/config.json").write_bytes(content)
            return f"{tiny.name} {done}"

        cases += [
            Case(
                "plan",
                ("--config=experiment.py", "--show_shardings"),
                ("experiment.py",),
                lambda directory, some=(tiny, number), prepare=prepare: prepare(directory, *some),
            )
            for number in times(2)
        ]
    check(cases)


def test_data(check):
    cases = []
    for task in DATA:
        for split in ("train", "validation", "test"):
            arguments = (
                "--config=experiment.py",
                f"--config.data.task={task}",
                f"--split={split}",
                f"--config.data.path=data/{task}",
                *LONG,
            )
            file = "*set*.csv" if task == "e2e_nlg" else f"{split}.jsonl"
            parts = ("experiment.py", "model", "data")
            cases += damaged("show", arguments, parts, (f"data/{task}/{file}",), 2)
    check(cases)


def test_prompts(check):
    """A file of prompts: of ssjax.generate, and questions of ssjax.benchmark."""
    cases = damaged(
        "generate",
        ("--workdir=model", "--prompts_file=prompts.txt", "--top_p=2"),
        ("model", "prompts.txt"),
        ("prompts.txt",),
        4,
    )
    arguments = ("--workdir=run", "--questions=questions.jsonl", "--batch_sizes=0")
    parts = ("model", "run", "questions.jsonl")
    cases += damaged("benchmark", arguments, parts, ("questions.jsonl",), 6)
    check(cases)


# Settings.

VALUES = """
    nan inf -inf -1 0 0.0 -0.5 1 2 3.7 1e400 1e-400 3000000000 2147483648 1_0 0x10 text None True
    1,a [] () {} ( ' ../x (-1,) (nan,) ('a',) (2147483648,)
"""
ODD = (*VALUES.split(), "9" * 20, "\u0663", "a\nb", " ", "")


def odd_settings(verb, count, *arguments, groups=("",)):
    """Cases with one key of the config changed, of those that begin with one of these."""
    dice = dice_of(verb, "settings")
    keys = [key for key in ranges.keys(Config) if key.startswith(groups)]
    pairs = [(key, value) for key in keys for value in ODD]
    return [
        Case(verb, (f"--config=experiment.py:{variant}", *arguments, f"--config.{key}={value}"))
        for key, value in dice.sample(pairs, min(len(times(count)), len(pairs)))
        for variant in [dice.choice(["tuned", "scratch"])]
    ]


def test_settings_of_a_training(check):
    """As far as the data, which is not there."""
    check(odd_settings("train", 40, "--config.data.path=missing"))


def test_settings_as_far_as_shapes(check):
    """The train state and what decoding holds, nothing is compiled."""
    groups = (
        "model.",
        "streams.",
        "drafter.",
        "adaptation.",
        "loss.",
        "optimizer.",
        "decode.",
        "mesh.",
        "train.",
        "data.batch",
        "data.max",
        "data.token",
        "seed",
    )
    check(odd_settings("plan", 24, "--show_shardings", groups=groups))


def test_settings_of_data(check):
    cases = odd_settings("show", 14, groups=("data.", "seed", "workdir"))
    check([dataclasses.replace(case, parts=("experiment.py", "model", "data")) for case in cases])


# Experiments. What files may hold is in test_experiment.py.

IN_FILES = (
    "",
    "def get_config(:\n",
    "raise ValueError('two\\nlines')\n",
    "import no_such_module\n",
    "def get_config():\n    return undefined_name\n",
    "def get_config():\n    return {}\n",
    "import sys\ndef get_config():\n    sys.exit(7)\n",
    "raise SystemExit('bye')\n",
    "def get_config():\n    return get_config()\n",
    "x = '\x00'\n",
    "get_config = 3\n",
    "def get_config():\n    raise MemoryError\n",
    "# -*- coding: nonsense -*-\n",
    "def get_config():\n    assert False\n",
    "def get_config():\n    return open('/no/such/file')\n",
)
NAMED = (
    "",
    "--config",
    "--config=",
    "--config=missing.py",
    "--config=model",
    "--config=/dev/null",
    "--config=model/config.json",
    "--config=experiment.py:nope:b",
    "--config=bad\udcff.py",
    "--confg=experiment.py",
    "--config.seed=1",
)
CHANGED = """
    --config.nope=1 --config.train.num_step=1 --config.train=1 --config.=1 --config..=1 more
    --config.train.num_steps.x=1 --config.data.path --config.train.num_steps --noconfig
    --config.train.__class__=1 --config.keys=1 --config.data.length_buckets[0]=1
    --config.model.local_layers=(1,2 --noconfig.train.num_steps --config.model.pretrained=run
    --config.model.pretrained=missing --config.model.pretrained=no/such@revision
    --config.data.tokenizer=data --config.workdir=experiment.py/x --config.workdir=/proc/x
    --config.data.prepared_dir=/proc/x --config.compilation_cache=experiment.py
"""


def test_experiments(check):
    def written(text):
        def prepare(directory):
            (directory / "bad.py").write_text(text)
            return repr(text)

        return prepare

    missing = "--config.data.path=missing"
    cases = [Case("train", ("--config=bad.py", missing), (), written(text)) for text in IN_FILES]
    cases += [Case("train", arguments.split()) for arguments in NAMED]
    cases += [
        Case("train", ("--config=experiment.py", argument, missing)) for argument in CHANGED.split()
    ]
    check(cases)


# Flags.

RUN = "workdir checkpoint base json"
DECODE = (
    "max_new_tokens batch_size drafter draft_model num_nodes num_streams lookup_nodes kept_nodes "
    "exit_threshold min_node_chance deferred temperature top_k top_p min_p repetition_penalty "
    "presence_penalty banned_tokens min_new_tokens accept stop seed mesh calibration"
)
# By verb: what is given, and what is odd. As it is given it ends soon, right or not.
FLAGS = {
    "generate": (
        "--workdir=run --prompt=Anna --draft_model=run",  # of a drafter that is not given
        f"{RUN} {DECODE} adapter prompts_file prompt raw stream log_probs show_runs",
    ),
    "distill": (
        "--workdir=model --config=experiment.py --config.data.path=missing --target=new",
        "workdir checkpoint base adapter target temperatures num_records splits batch_size seed "
        "mesh json distributed calibration",
    ),
    "evaluate": (
        "--workdir=run --data_path=missing",
        f"{RUN} {DECODE} adapter split max_records data_path",
    ),
    "verify": (
        "--workdir=converted --prompt=Anna",
        f"{RUN} adapter split num_prompts num_samples temperature max_new_tokens accept "
        "prompts_file",
    ),
    "calibrate": (
        "--workdir=converted",
        f"{RUN} adapter batch_sizes num_prompts nodes plot",
    ),
    "benchmark": (
        "--workdir=run --data_path=missing",
        f"{RUN} drafters batch_sizes split data_path questions num_prompts max_new_tokens "
        "temperature plot markdown",
    ),
    "export": (
        "--workdir=run --format=adapter --target=new",
        "workdir checkpoint format target base dtype",
    ),
    "convert": ("--source=model --target=new", "source target dtype json"),
    "plan": (
        "--config=experiment.py --show_shardings",
        "topology devices show_shardings json config",
    ),
    "reproduce": (
        "--suite=small --workdir=study --data_path=missing",
        "suite workdir data_path tasks report only_report untimed",
    ),
    "show": (f"--config=experiment.py {' '.join(LONG)}", "split num_records json"),
    "train": ("--config=experiment.py --config.data.path=missing", "json distributed"),
}
FLAG_VALUES = """
    1,1,1 0,0,0 9,9,9 007 best v5e:9x9 auto,plain auto@model hub/model@main@x missing/x model run
    data experiment.py experiment.py/x.json /proc/x/y /dev/null plain:num_nodes=x streams:nope=1
    streams:num_nodes=nan draft_model@missing
"""
ODD_FLAGS = (*ODD, *FLAG_VALUES.split(), "x" * 5000, "\udcff")


@pytest.mark.parametrize("verb", FLAGS)
def test_flags(check, verb):
    dice = dice_of(verb, "flags")
    given, names = (words.split() for words in FLAGS[verb])
    every = [f"--{name}={value}" for name in names for value in ODD_FLAGS]
    odd = [(*given, flag) for flag in dice.sample(every, min(len(times(8)), len(every)))]
    name = dice.choice(names)
    odd += [
        (),
        given[1:],
        (*given, f"--{name}"),
        (*given, f"--{name}x=1"),
        (*given, "more"),
        (*given, "--flagfile=missing"),
        (*given, f"--no{name}x"),
    ]
    parts = ("experiment.py", "model", "data", "run", "converted")
    check([Case(verb, arguments, parts) for arguments in odd])
