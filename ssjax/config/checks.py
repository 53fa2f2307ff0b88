"""What values of a config must be together."""

import itertools
import math
from pathlib import Path

from ssjax.config import addresses, measured, ranges
from ssjax.config.keys import (
    Config,
    DataConfig,
    DecodeConfig,
    MeshConfig,
)
from ssjax.config.model_keys import (
    ModelConfig,
    StreamsConfig,
)
from ssjax.errors import UserError


def validate(config: Config) -> None:
    """Checks that the values of a config can work together. Raises: UserError."""
    streams, data = config.streams, config.data
    train, decode = config.train, config.decode
    _validate_model(config.model)
    for key in ("main_reads_streams", "init_rank"):
        _check(
            streams.num_streams > 0 or not getattr(streams, key),
            f"streams.{key} needs streams, and streams.num_streams is 0",
        )
    _check(
        not (streams.main_reads_streams and streams.root_rank),
        "streams.root_rank cannot hold with streams.main_reads_streams: streams that the main "
        "stream reads run before the root is drawn; give streams.root_rank=0",
    )
    _check(
        streams.medusa_heads == 0 or config.drafter.kind == "medusa",
        "streams.medusa_heads is set by drafter.kind=medusa; give drafter.num_heads instead",
    )
    _validate_draft_vocabulary(streams)
    if not config.model.pretrained:  # else num_layers is not known yet
        check_stream_layers(config)
    _validate_adaptation(config)
    _validate_loss(config)
    _check(
        not (data.length_buckets and data.packing),
        "data.length_buckets and data.packing are two ways to save padding; choose one",
    )
    _validate_reading(data)
    _check(
        addresses.scheme(config.workdir) in ("", "gs"),
        f"workdir {config.workdir!r} must be a path or an address of gs://, where arrays are kept",
    )
    places = [("data.path", data.path), ("data.prepared_dir", data.prepared_dir)]
    for key, place in [*places, *(("data.mixture", path) for path, _ in data.mixed)]:
        _check_address(key, place)
    _check(
        not config.init_from or _whole(config.init_from) != _whole(config.workdir),
        f"init_from {config.init_from} is the workdir itself; a run continues without it",
    )
    _check(bool(config.workdir), "workdir is empty; give the directory of the run")
    _validate_mesh(config.mesh)
    _check(
        data.batch_size % train.accumulation == 0,
        f"data.batch_size {data.batch_size} is not a multiple of train.accumulation "
        f"{train.accumulation}",
    )
    validate_decode(decode, streams)
    _validate_best(config)


def _whole(place: str) -> str:
    """A path from the root, or an address."""
    return place.rstrip("/") if addresses.scheme(place) else str(Path(place).absolute())


def _check_address(key: str, place: str) -> None:
    known = " or ".join(f"{name}://" for name in addresses.CLIENTS)
    _check(
        not addresses.scheme(place) or addresses.is_bucket(place),
        f"{key} {place!r} is an address of an unknown kind; give a path, or one of {known}",
    )


def _validate_mesh(mesh: MeshConfig) -> None:
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    _check(
        0 not in sizes and sizes.count(-1) <= 1,
        f"mesh.data, mesh.fsdp and mesh.tensor are {sizes}: positive sizes, one of which may be -1",
    )
    _check(
        len(mesh.decode) in (0, 3) and 0 not in mesh.decode and mesh.decode.count(-1) <= 1,
        f"mesh.decode {mesh.decode} must be positive sizes of data, fsdp and tensor, one of which "
        "may be -1, or empty",
    )


def _validate_reading(data: DataConfig) -> None:
    named = [each.partition("=") for each in data.columns]
    _check(
        all(name and column for name, _, column in named),
        f"data.columns must hold NAME=COLUMN, the task's name first, got {data.columns!r:.80}",
    )
    try:
        mixed = all(path and 0 < weight < math.inf for path, weight in data.mixed)
    except ValueError:
        mixed = False
    _check(
        mixed,
        f"data.mixture must hold DIR=WEIGHT, each weight above 0, got {data.mixture!r:.80}",
    )
    names = [name for name, _, _ in named]
    _check(len({*names}) == len(names), f"data.columns names {names} twice; a name has one column")
    _check(
        data.validation_share + data.test_share < 1,
        f"data.validation_share {data.validation_share:g} and data.test_share {data.test_share:g} "
        "leave nothing to train on; together they must be below 1",
    )


def _validate_draft_vocabulary(streams: StreamsConfig) -> None:
    size, tokens = streams.draft_vocab_size, streams.draft_tokens
    _check(
        size == 0 or streams.num_streams > 0,
        "streams.draft_vocab_size needs streams, and streams.num_streams is 0",
    )
    _check(
        len(tokens) <= size,
        f"streams.draft_tokens names {len(tokens)} tokens and streams.draft_vocab_size is {size}; "
        "give their number, or leave draft_tokens empty to take the most frequent",
    )
    _check(
        all(a < b for a, b in itertools.pairwise(tokens)),
        "streams.draft_tokens must rise: no id twice, the smallest first",
    )


def _validate_best(config: Config) -> None:
    """The best checkpoint is judged by what validations measure."""
    name = config.checkpoint.best_by
    where = f"checkpoint.best_by {name}"
    _check(
        name.startswith(measured.PREFIX),
        f"checkpoint.best_by {name!r:.80} must be named as in the validation records of "
        f"metrics.jsonl, such as {measured.VALIDATION_LOSS} or {measured.TOKENS_PER_CALL}",
    )
    if not measured.is_decoded(name):
        return
    _check(
        config.train.eval_prompts > 0,
        f"{where} needs prompts that are decoded, and train.eval_prompts is 0",
    )
    _check(
        config.streams.num_ahead > 0,
        f"{where} needs streams or Medusa heads, and the model has none; choose "
        f"{measured.VALIDATION_LOSS}",
    )
    _check(
        config.decode.drafter != "plain",
        f"{where} needs drafts, and decode.drafter is plain: a pass then emits one token",
    )


def _validate_loss(config: Config) -> None:
    """A loss without any weight would train nothing and not say so."""
    loss, streams = config.loss, config.streams
    drafts = streams.num_streams + streams.medusa_heads > 0
    weights = {
        "loss.main_weight": 0.0 if config.adaptation.mode == "lossless" else loss.main_weight,
        "loss.stream_weight": loss.stream_weight if drafts else 0.0,
        "loss.exit_weight": loss.exit_weight if streams.exit_rank else 0.0,
    }
    _check(
        any(weights.values()),
        f"{', '.join(weights)} leave nothing to train; give one that is trained a weight above 0",
    )


def validate_decode(decode: DecodeConfig, streams: StreamsConfig) -> None:
    """Checks that a model with these streams can decode so. Raises: UserError."""
    _check(
        (decode.drafter == "draft_model") == bool(decode.draft_model),
        "decode.drafter=draft_model and decode.draft_model=DIR go together",
    )
    for key in ("kept_nodes", "exit_threshold"):
        _check(
            getattr(decode, key) == 0 or streams.exit_rank > 0,
            f"decode.{key} {getattr(decode, key)} needs the early exit that prunes, and "
            "streams.exit_rank is 0",
        )
    _check(
        decode.deferred or not streams.knows_root,
        "decode.deferred=False runs streams before the root is drawn, and these start from it "
        f"(streams.root_rank {streams.root_rank}); leave decode.deferred at True",
    )
    trained = max(streams.num_streams, streams.medusa_heads)
    _check(
        decode.num_streams <= trained,
        f"decode.num_streams {decode.num_streams} is more than the {trained} streams of the model",
    )
    # Logits divided by less would leave float32.
    _check(
        decode.temperature == 0 or decode.temperature >= 1e-4,
        f"decode.temperature must be 0 (greedy) or at least 0.0001, got {decode.temperature}",
    )
    _check(
        decode.min_new_tokens <= decode.max_new_tokens,
        f"decode.min_new_tokens {decode.min_new_tokens} must lie between 0 and "
        f"decode.max_new_tokens {decode.max_new_tokens}",
    )
    _check(
        decode.accept == "exact" or decode.temperature > 0,
        "decode.accept 'typical' needs decode.temperature above 0: of greedy decoding only one "
        "token is right",
    )
    _check(all(decode.stop), "decode.stop must hold strings that are not empty")
    for key in ("branching", "prompt_buckets"):
        _check(len(getattr(decode, key)) > 0, f"decode.{key} is empty; give at least one")


def check_stream_layers(config: Config) -> None:
    """Checks that the model has the stream layers. Raises: UserError."""
    num_layers = config.model.num_layers
    _check(
        1 <= config.streams.num_stream_layers <= num_layers,
        f"streams.num_stream_layers {config.streams.num_stream_layers} must lie between 1 and "
        f"model.num_layers {num_layers}",
    )


def validate_model(model: ModelConfig) -> None:
    """Checks every value of a model that no config file names. Raises: UserError with the key."""
    ranges.check_fields(model, "model.")
    _validate_model(model)


def _validate_model(model: ModelConfig) -> None:
    """Checks that the values can work together."""
    _check(
        model.num_heads % model.num_kv_heads == 0,
        f"model.num_heads {model.num_heads} is not a multiple of model.num_kv_heads "
        f"{model.num_kv_heads}",
    )
    _check(
        model.head_dim % 2 == 0,
        f"model.head_dim {model.head_dim} must be even: rotary positions turn pairs",
    )
    _check(
        model.rotary_dim <= model.head_dim and model.rotary_dim % 2 == 0,
        f"model.rotary_dim {model.rotary_dim} must be even and at most model.head_dim",
    )
    num_pairs = (model.rotary_dim or model.head_dim) // 2
    _check(
        model.rope_scaling != "longrope"
        or (len(model.rope_factors) == num_pairs and model.rope_original_positions > 0),
        f"model.rope_scaling longrope needs model.rope_factors for {num_pairs} pairs of channels "
        f"and model.rope_original_positions, not {len(model.rope_factors)} and "
        f"{model.rope_original_positions}",
    )
    _check(
        model.positions == "rotary" or model.max_positions > 0,
        "model.max_positions must be given for learned positions",
    )
    for key in ("local_layers", "no_rope_layers"):
        _check(
            all(layer < model.num_layers for layer in getattr(model, key)),
            f"model.{key} {getattr(model, key)} names a layer that does not exist",
        )
    _check(
        not model.local_layers or model.window > 0,
        "model.window must be positive where model.local_layers names layers",
    )


def _validate_adaptation(config: Config) -> None:
    adaptation = config.adaptation
    if adaptation.mode == "full":
        return
    beside = adaptation.mode != "shared"  # what drafts is trained beside the model
    _check(
        not (beside and config.streams.main_reads_streams),
        f"adaptation.mode {adaptation.mode} cannot hold with streams.main_reads_streams: streams "
        "would change the main output; choose shared, or main_reads_streams=False",
    )
    alone = {"lossless": "alone", "detached": "beside a fine-tune (without streams choose shared)"}
    _check(
        not beside or config.streams.num_streams + config.streams.medusa_heads > 0,
        f"adaptation.mode {adaptation.mode} trains streams {alone.get(adaptation.mode)}, and "
        "streams.num_streams is 0",
    )
    _check(
        adaptation.mode != "detached" or config.loss.main_weight > 0,
        "adaptation.mode detached trains a fine-tune by the main loss, and loss.main_weight is 0; "
        "choose lossless to train streams alone",
    )
    _check(bool(adaptation.targets), "adaptation.targets is empty; name some projections")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(f"config: {message}")
