"""From a base model to a fine-tune and out again, in every mode, as a user does it."""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import verb_server
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from ssjax import config as config_lib
from ssjax.config import ModelConfig
from ssjax.data import sample
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.decoding.drafters import PlainDrafter
from ssjax.errors import UserError
from ssjax.evaluation import certificates
from ssjax.files.writing import new_directory
from ssjax.models.lora import is_of_main_rows
from ssjax.models.parameters import cast, fingerprint, flatten, split
from ssjax.run import load, open_run
from ssjax.training import claim, trainer
from ssjax.training.description import line_of_positions, parameter_line
from ssjax.weights import exported as exported_lib
from ssjax.weights import huggingface
from ssjax.weights.base import open_base, resolve
from ssjax.weights.load import load_trained, make_model

ROOT = Path(__file__).parents[2]
STEPS = 8
ENVIRONMENT = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
MODES = ("shared", "lossless", "detached")
PROMPTS = [[2, 5, 9], [2, 30, 31, 32]]
DIALOGUE = "#Person1#: Hi Ben, are you free on Friday?\n#Person2#: Yes, at 7 pm."
SIZES = dict(vocab_size=520, embed_dim=32, num_layers=3, mlp_dim=48)
MODEL = ModelConfig(num_heads=4, num_kv_heads=2, head_dim=8, **SIZES)

pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring"),
]


def call(verb, *arguments):
    return verb_server.server(**ENVIRONMENT).call(verb, arguments)


def digest(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama with a tokenizer, its table 8 ids larger, as Hugging Face files."""
    directory = tmp_path_factory.mktemp("base")
    records = sample.generate({"train": 400}, 0)["train"]
    train_tokenizer([r["dialogue"] for r in records], 512, symbols=()).save(directory)
    model = oracles.make_model(num_streams=0, num_stream_layers=1, **vars(MODEL))
    params = oracles.random_params(model, seed=1, table_scale=0.4)
    huggingface.write_params(directory, MODEL, params, huggingface.llama_config_json(MODEL))
    return directory


def settings(workdir, prepared, base, mode):
    """A short fine-tune of the base."""
    spec = importlib.util.spec_from_file_location("d", ROOT / "experiments" / "dialogsum.py")
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    c = experiment.get_config("smoke")
    c.workdir, c.data.prepared_dir, c.model.pretrained = map(str, (workdir, prepared, base))
    c.adaptation.mode, c.adaptation.rank, c.adaptation.alpha = mode, 3, 12.0
    c.streams.exit_rank = c.streams.init_rank = 2
    c.streams.draft_vocab_size = 200 if mode == "lossless" else 0
    c.loss.main_weight = 0.0 if mode == "lossless" else 1.0
    c.optimizer.learning_rate = 0.01
    c.optimizer.warmup_steps = 2
    c.train.num_steps = STEPS
    return c


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, prepared):
    """A finished run of each mode: (workdir, what it said about its parameters)."""
    before, finished = digest(base), {}
    for mode in MODES:
        c = settings(tmp_path_factory.mktemp("runs") / mode, prepared, base, mode)
        finished[mode] = train_in_process(config_lib.from_config_dict(c))
    assert digest(base) == before, "training changed files of the base"
    return finished


def train_in_process(config):
    """What `ssjax.train` does on one device, without a process of its own."""
    outcome = trainer.train(config, devices=jax.devices()[:1])
    assert outcome.complete
    trained = outcome.trained
    model = make_model(trained.config, trained.tokenizer)
    return trained.directory, parameter_line(model, trained.trainable, trained.frozen)


@pytest.mark.parametrize(
    ("positions", "made_for", "num_tokens", "said"),
    [
        ("rotary", 64, 65, True),
        ("rotary", 64, 64, False),
        ("rotary", 0, 65, False),
        ("learned", 64, 65, False),
    ],
)
def test_longer_rows_than_a_rotary_model_was_made_for_are_told(
    positions, made_for, num_tokens, said
):
    model = dataclasses.replace(MODEL, positions=positions, max_positions=made_for)
    line = line_of_positions(model, num_tokens)
    assert bool(line) == said and ("65 tokens, more than the 64 positions" in line) == said


def test_the_length_that_a_model_was_made_for_may_become_known(tmp_path):
    """Of rotary positions, where it decides nothing; runs of before have 0 there."""
    for positions, same in (("rotary", True), ("learned", False)):
        model = dataclasses.replace(MODEL, max_positions=64, positions=positions)
        config = dataclasses.replace(config_lib.Config(), model=model)
        workdir = tmp_path / positions
        claim.claim_workdir(workdir, config)
        claim.claim_workdir(workdir, config)
        longer = dataclasses.replace(config.model, max_positions=128)
        longer = dataclasses.replace(config, model=longer)
        if same:
            claim.claim_workdir(workdir, longer)
        else:
            with pytest.raises(UserError, match="model.max_positions=64, not 128"):
                claim.claim_workdir(workdir, longer)


@pytest.fixture(scope="module", params=MODES)
def trained(request, runs):
    return load_trained(runs[request.param][0])


def main_logits(trained, tokens=((5, 9, 2, 7, 7, 30), (1, 2, 3, 4, 5, 6))):
    model = make_model(trained.config, trained.tokenizer)
    output = oracles.run_model(model, trained.params, np.array(tokens))
    return oracles.logits_of(model, trained.params, output.hidden)


def outputs(run, **options):
    answers = run.generate([DIALOGUE, DIALOGUE[:40]], max_new_tokens=12, **options)
    return [answer.completion.tokens for answer in answers]


OF_ROOT, OF_PARENT = 64 * 2 * 32, 64 * (3 * 32 + 3)


def test_counts_are_printed(runs):
    """J * D and twice 2 * rank * D for the method, of rank 64 2 * D for the root and 3 * D + J for
    the parent; 3 * (in + out) per adapted projection."""
    said = runs["lossless"][1]
    layer = 3 * sum([32 + 32, 32 + 16, 32 + 16, 32 + 32, 3 * (32 + 48)])
    base = sum(leaf.size for leaf in flatten(load_trained(runs["lossless"][0]).frozen).values())
    added = 3 * 32 + 8 * 32 + OF_ROOT + OF_PARENT
    assert f"parameters: base {base:,}; Speculative Streaming {added:,} (3 stream" in said
    assert f"embeddings {3 * 32:,}, map to their start {4 * 32:,}, root at their start" in said
    assert f"start {OF_ROOT:,}, correction by the parent {OF_PARENT:,}, early-exit adapter" in said
    assert f"early-exit adapter {4 * 32:,}); LoRA {2 * layer:,};" in said
    assert f"LoRA {3 * layer:,};" in runs["shared"][1]
    assert f"LoRA {3 * layer:,}, of the streams alone {2 * layer:,};" in runs["detached"][1]


def test_checkpoints_hold_what_was_trained_and_no_more(runs, trained):
    workdir = runs[trained.config.adaptation.mode][0]
    state = ocp.load(str(workdir / "checkpoints" / str(STEPS)), checkpointable_name="state")
    names = set(flatten(state["params"]))
    assert names == set(flatten(trained.trainable))
    assert not any(name.endswith("weight") for name in names)
    assert json.loads((workdir / "base.json").read_text())["fingerprint"]


def test_training_moved_every_trained_leaf(trained):
    """lora_b and what ends with up (exit, start, root, parent) start at zero."""
    for name, leaf in flatten(trained.trainable).items():
        if name.endswith(("lora_b", "_up")):
            assert np.abs(leaf).max() > 1e-4, name


def test_lossless_main_logits_are_the_bases_bit_for_bit(runs, base):
    ours = main_logits(load_trained(runs["lossless"][0]))
    untouched = load_trained(base)
    config = dataclasses.replace(untouched.config.streams, num_stream_layers=2)
    params = open_base(base, "float32").read_params(2, jnp.float32)
    untouched = dataclasses.replace(
        untouched, config=dataclasses.replace(untouched.config, streams=config), frozen=params
    )
    np.testing.assert_array_equal(ours, main_logits(untouched))
    assert np.abs(main_logits(load_trained(runs["shared"][0])) - ours).max() > 0.1


def test_outputs_are_the_bases_only_in_the_lossless_mode(runs, base):
    untouched, prompt = load(base), load(runs["lossless"][0])
    ids = [prompt.encode_prompt(DIALOGUE, raw=False)]
    [completion] = oracles.generate(untouched.decoder, ids, PlainDrafter())
    expected = completion.tokens
    assert outputs(prompt)[0] == outputs(prompt, drafter="plain")[0] == expected
    assert outputs(load(runs["shared"][0]))[0] != expected


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Directories by format."""
    directories = {}
    for name in ("hf", "orbax", "adapter"):
        directories[name] = tmp_path_factory.mktemp("exported") / name
        with new_directory(directories[name]) as directory:
            getattr(exported_lib, f"write_{name}")(directory, trained, "float32")
            trained.tokenizer.save(directory)
    return directories


@pytest.mark.parametrize("form", ["hf", "orbax", "adapter"])
def test_what_is_exported_comes_back(trained, exported, base, form):
    if form == "adapter":
        again = load_trained(base, adapter=exported[form])
    else:
        again = load_trained(exported[form])
    merged = trained.config.adaptation.mode != "lossless" and form != "adapter"
    tolerance = oracles.LOGIT_TOLERANCE if merged else 0.0
    np.testing.assert_allclose(main_logits(again), main_logits(trained), atol=tolerance, rtol=0)
    assert outputs(open_run(again)) == outputs(open_run(trained))
    if not merged:
        assert flatten(again.params).keys() == flatten(trained.params).keys()


def test_peft_form_only_where_a_peft_reader_would_be_right(trained, exported):
    files = {path.name for path in exported["adapter"].iterdir()}
    assert {"ssjax.json", "streams.safetensors", "tokenizer.model"} <= files
    of_main_rows = trained.config.adaptation.mode != "lossless"
    assert ("adapter_model.safetensors" in files) == of_main_rows
    assert ("adapter_config.json" in files) == of_main_rows
    own = load_file(exported["adapter"] / "streams.safetensors")
    is_shared = trained.config.adaptation.mode == "shared"
    assert any("lora" in name for name in own) != is_shared


def test_transformers_loads_the_export(trained, exported, base):
    """Merged weights, and by hand the LoRA of the PEFT folder on the base, as PEFT does it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens = np.array([[5, 9, 2, 7, 7, 30]])
    expected = main_logits(trained, tokens)

    def logits(model):
        with torch.no_grad():
            return model.eval()(torch.tensor(tokens)).logits.numpy()

    model = transformers.AutoModelForCausalLM.from_pretrained(exported["hf"], dtype=torch.float32)
    np.testing.assert_allclose(logits(model), expected, atol=oracles.LOGIT_TOLERANCE, rtol=0)
    if trained.config.adaptation.mode == "lossless":
        return
    settings = json.loads((exported["adapter"] / "adapter_config.json").read_text())
    adapter = load_file(exported["adapter"] / "adapter_model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name in [name for name in adapter if name.endswith("lora_A.weight")]:
        a, b = adapter[name], adapter[name.replace("lora_A", "lora_B")]
        module = model.get_submodule(name.split(".", 2)[2].removesuffix(".lora_A.weight"))
        module.weight.data += settings["lora_alpha"] / settings["r"] * torch.tensor(b @ a)
        assert name.split(".")[-3] in settings["target_modules"]
    np.testing.assert_allclose(logits(model), expected, atol=oracles.LOGIT_TOLERANCE, rtol=0)


def test_adapters_over_one_base(runs, exported, trained):
    """On the directory of another run, which names the same base."""
    other = next(workdir for workdir, _ in runs.values() if workdir != trained.directory)
    swapped = load(other, adapter=exported["adapter"])
    assert outputs(swapped) == outputs(open_run(trained))


def test_an_adapter_from_the_command_line(runs, base, tmp_path):
    done = call("export", f"--workdir={runs['shared'][0]}", "--format=adapter")
    assert done.returncode == 0, done.stderr
    result = tmp_path / "out.json"
    done = call(
        "generate",
        f"--workdir={base}",
        f"--adapter={runs['shared'][0]}/export/adapter",
        f"--prompt={DIALOGUE}",
        "--max_new_tokens=12",
        f"--json={result}",
    )
    assert done.returncode == 0, done.stderr
    [answer] = load(runs["shared"][0]).generate([DIALOGUE], max_new_tokens=12)
    assert json.loads(result.read_text())[0]["output"] == answer.text


def test_a_base_may_move_but_not_change(runs, base, tmp_path):
    workdir = runs["shared"][0]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in base.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert outputs(load(workdir, base=moved)) == outputs(load(workdir))
    weights = (moved / "model.safetensors").read_bytes()
    (moved / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\x00\x3f")
    with pytest.raises(UserError, match="not the ones that the run was trained on"):
        load(workdir, base=moved)


def test_a_shared_certificate(runs):
    """In bfloat16. What it promises holds, and it promises nothing about the base."""
    trained = load_trained(runs["shared"][0])
    model = dataclasses.replace(trained.config.model, dtype="bfloat16")
    narrow = dataclasses.replace(
        trained,
        config=dataclasses.replace(trained.config, model=model),
        frozen=cast(trained.frozen, jnp.bfloat16),
    )
    found = certificates.certify(narrow, PROMPTS, open_run(trained).decode_config(max_new_tokens=8))
    assert found["holds"], found
    # Streams that start from the root are deferred.
    assert set(found["checks"]) == {"float32_deferred", "bfloat16", "sampling"}
    assert "new model, not compared with its base" in found["promise"]


@pytest.mark.parametrize("form", ["run", "int8", "hf", "orbax", "adapter"])
def test_a_detached_certificate(runs, base, tmp_path, form):
    """Of the run and of what is exported from it, which is its own base where it has weights."""
    trained = load_trained(runs["detached"][0])
    if form not in ("run", "int8"):
        with new_directory(tmp_path / "new") as directory:
            getattr(exported_lib, f"write_{form}")(directory, trained, "float32")
            trained.tokenizer.save(directory)
        adapter = tmp_path / "new" if form == "adapter" else None
        trained = load_trained(base if adapter else tmp_path / "new", adapter=adapter)
    decode = open_run(trained).decode_config(max_new_tokens=8)
    found = certificates.certify(trained, PROMPTS, decode, int8=form == "int8")
    assert found["holds"], found
    whole = form in ("hf", "orbax")
    compared = found["checks"]["equals_base" if whole else "equals_fine_tune"]
    source = "the frozen weights in this directory" if whole else str(base)
    assert compared["identical"] == len(PROMPTS) and compared["base"] == source
    assert found["mode"] == ("lossless" if whole else "detached")


def test_a_fine_tune_that_is_not_the_adapters_is_found(runs):
    """Weights below the adapter that differ by a little in one layer."""
    trained = load_trained(runs["detached"][0])
    frozen = jax.tree.map(lambda x: x, trained.frozen)
    frozen["final_norm"]["weight"] = frozen["final_norm"]["weight"].at[::2].mul(-1.0)
    broken = dataclasses.replace(trained, frozen=frozen)
    decode = open_run(trained).decode_config(max_new_tokens=8)
    result = certificates.certify(broken, PROMPTS, decode)
    assert not result["holds"] and not result["checks"]["equals_fine_tune"]["holds"]


def test_a_lossless_certificate_from_the_command_line(runs, tmp_path):
    """On the run's own test split."""
    result = tmp_path / "certificate.json"
    done = call(
        "verify",
        f"--workdir={runs['lossless'][0]}",
        "--num_prompts=2",
        "--num_samples=8",
        "--max_new_tokens=8",
        f"--json={result}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "outputs are the base model's, token for token" in done.stdout
    assert json.loads(result.read_text())["checks"]["equals_base"]["identical"] == 2


def test_a_broken_promise_is_found(runs):
    """Base weights that differ by a little in one layer: not the base model any more."""
    trained = load_trained(runs["lossless"][0])
    frozen = jax.tree.map(lambda x: x, trained.frozen)
    frozen["final_norm"]["weight"] = frozen["final_norm"]["weight"].at[::2].mul(-1.0)
    broken = dataclasses.replace(trained, frozen=frozen)
    decode = open_run(trained).decode_config(max_new_tokens=8)
    result = certificates.certify(broken, PROMPTS, decode)
    assert not result["holds"] and not result["checks"]["equals_base"]["holds"]
    assert result["checks"]["float32_deferred"]["holds"]  # still equal to itself


def test_convert(base, tmp_path):
    target = tmp_path / "converted"
    said = tmp_path / "said.json"
    done = call("convert", f"--source={base}", f"--target={target}", f"--json={said}")
    assert done.returncode == 0, done.stderr
    assert "Llama: " in done.stdout and "F32 -> float32" in done.stdout
    origin = json.loads((target / "base.json").read_text())
    read = open_base(base, "float32").read_params(1, jnp.float32)
    assert origin == {"source": str(base), "revision": "", "fingerprint": fingerprint(read)}
    assert origin.items() <= json.loads(said.read_text()).items()
    assert f"digest {origin['fingerprint']}" in done.stdout
    for num_stream_layers in (1, 2):
        ours = open_base(target, "float32").read_params(num_stream_layers, jnp.float32)
        theirs = open_base(base, "float32").read_params(num_stream_layers, jnp.float32)
        for name, leaf in flatten(theirs).items():
            np.testing.assert_array_equal(flatten(ours)[name], leaf)
    assert outputs(load(target), raw=True) == outputs(load(base), raw=True)
    with pytest.raises(UserError, match="exists and is not empty"), new_directory(target):
        pass


def test_an_export_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "new") as directory:
        (directory / "half").write_text("half")
        assert not (tmp_path / "new").exists()
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_adaptation_without_a_base_is_one_line(tmp_path):
    done = call(
        "train",
        "--config=experiments/dialogsum.py:smoke",
        f"--config.workdir={tmp_path}/x",
        "--config.adaptation.mode=shared",
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "adapts a base model; give one with --config.model.pretrained" in line
    assert not (tmp_path / "x").exists()


def test_streams_must_fit_the_base(base):
    config = dataclasses.replace(
        config_lib.Config(), streams=config_lib.StreamsConfig(num_stream_layers=4)
    )
    with pytest.raises(UserError, match="4 must lie between 1 and model.num_layers 3"):
        resolve(config, open_base(base, "float32"))


def test_a_run_is_not_a_base(runs):
    with pytest.raises(UserError, match="--format orbax --target DIR"):
        open_base(runs["shared"][0], "float32")


def test_medusa_heads_on_a_frozen_base(tmp_path, base, prepared, runs):
    """Trained, decoded, exported: the tokens are the base's, as those of the lossless mode are."""
    c = settings(tmp_path / "run", prepared, base, "lossless")
    c.drafter.kind, c.drafter.num_heads = "medusa", 2
    workdir, said = train_in_process(config_lib.from_config_dict(c))
    heads = 2 * (32 * 32 + 32 + 520 * 32)
    assert f"2 Medusa heads {heads:,}; LoRA 0; trained {heads:,}" in said
    run = load(workdir)
    assert run.configured_way(run.decode_config()).drafter.num_heads == 2
    expected = outputs(load(runs["lossless"][0]))
    assert outputs(run) == outputs(run, drafter="plain") == expected
    trained = load_trained(workdir)
    table = trained.frozen["lm_head" if "lm_head" in trained.frozen else "embedder"]
    moved = np.abs(trained.trainable["medusa_head"] - np.asarray(table)).max(axis=(1, 2))
    assert (moved > 1e-4).all() and moved.max() < 0.5  # began as copies of the LM head
    with new_directory(tmp_path / "adapter") as directory:
        exported_lib.write_adapter(directory, trained, "float32")
        trained.tokenizer.save(directory)
    back = load(base, adapter=tmp_path / "adapter")
    assert outputs(back) == expected
    certificate = certificates.certify(
        trained, [run.encode_prompt(DIALOGUE, raw=False)] * 4, run.decode_config(max_new_tokens=9)
    )
    assert certificate["holds"]


@pytest.mark.parametrize("drafter", ["none", "medusa"])
def test_a_detached_fine_tune_is_that_of_a_run_without_streams(
    tmp_path, base, prepared, runs, drafter
):
    """Or with Medusa heads, which then say the same tokens."""
    c = settings(tmp_path / "run", prepared, base, "shared" if drafter == "none" else "detached")
    if drafter == "none":
        c.streams.num_streams = c.streams.exit_rank = c.streams.init_rank = 0
    else:
        c.drafter.kind, c.drafter.num_heads = "medusa", 2
    workdir, _ = train_in_process(config_lib.from_config_dict(c))
    ours, theirs = (
        flatten(split(load_trained(path).trainable, is_of_main_rows)[0])
        for path in (runs["detached"][0], workdir)
    )
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=1e-4, err_msg=name)
    assert outputs(load(workdir)) == outputs(load(runs["detached"][0]))


def test_every_other_drafter_of_a_run(tmp_path, base, runs):
    """A draft model is a run or a base with the same tokenizer; none changes what is said."""
    run = load(runs["shared"][0])
    expected = outputs(run, drafter="plain")
    for changes in (
        {"drafter": "prompt_lookup", "num_nodes": 3},
        {"lookup_nodes": 3},
        {"kept_nodes": 2},
        {"tree": "explicit", "parents": (-1, 0, 0, 1), "ranks": (0, 0, 1, 0)},
        {"drafter": "draft_model", "draft_model": str(base), "num_nodes": 2},
        {"drafter": "draft_model", "draft_model": str(runs["lossless"][0]), "num_nodes": 3},
    ):
        answers = run.generate([DIALOGUE, DIALOGUE[:40]], max_new_tokens=12, **changes)
        assert [answer.completion.tokens for answer in answers] == expected, changes
    other = tmp_path / "other"
    other.mkdir()
    for path in base.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    texts = [r["dialogue"][:60] for r in sample.generate({"train": 300}, 5)["train"]]
    train_tokenizer(texts, 480, symbols=()).save(other)
    with pytest.raises(UserError, match="another tokenizer"):
        run.generate([DIALOGUE], drafter="draft_model", draft_model=str(other))


def test_benchmark_of_all_drafters(tmp_path, base, prepared, runs):
    """One table: plain first, every output as plain's, extra parameters by drafter."""
    heads = settings(tmp_path / "heads", prepared, base, "lossless")
    heads.drafter.kind, heads.drafter.num_heads = "medusa", 2
    heads_dir, _ = train_in_process(config_lib.from_config_dict(heads))
    ours = runs["lossless"][0]
    drafters = f"streams:num_nodes=3,medusa@{heads_dir},draft_model@{base}:num_nodes=2"
    done = call(
        "benchmark",
        "--workdir",
        ours,
        "--drafters",
        drafters + ",prompt_lookup",
        "--num_prompts",
        3,
        "--max_new_tokens",
        6,
        "--batch_sizes",
        "1,2",
        "--json",
        tmp_path / "b.json",
        "--markdown",
        tmp_path / "b.md",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "b.md").read_text()
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1] * 5 + [2] * 5
    assert all(row["identical"] == 3 for row in rows)
    assert [row["drafter"].split("@")[0] for row in rows[:3]] == [
        "plain",
        "streams:num_nodes=3",
        "medusa",
    ]
    extra = [row["extra_parameters"] for row in rows[:5]]
    lora = 2 * 3 * sum([32 + 32, 32 + 16, 32 + 16, 32 + 32, 3 * (32 + 48)])
    whole = sum(x.size for x in flatten(load_trained(base).params).values())
    streams = 3 * 32 + 4 * 32 + OF_ROOT + OF_PARENT + lora
    assert extra == [0, streams, 2 * (32 * 32 + 32 + 520 * 32), whole, 0]
    for row in rows:
        low, value, high = (row["tokens_per_second"][k] for k in ("low", "value", "high"))
        assert 0 < low <= value <= high and "rouge1" in row
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["#Person1#: Hello?"]}\n{"turns": 3}\n')
    for arguments, message in (
        (["--questions", questions], 'line 2: must be a JSON object with "turns"'),
        (["--drafters", "streams:num_nodes"], "must be KEY=VALUE"),
        (["--drafters", "medusa"], "the model was not trained with it"),
        (["--batch_sizes", "0"], "must be positive whole numbers"),
    ):
        failed = call("benchmark", "--workdir", ours, *arguments)
        assert failed.returncode == 2 and failed.stderr.count("\n") <= 2, failed.stderr
        assert message in failed.stderr
