"""The paper's comparison at the size of a laptop: which models are trained, and what is measured.

Per task a base model, from random weights. On that base: a plain fine-tune, streams in both adapted
modes, Medusa heads, and beside it a draft model of a quarter of its size. Then every way to decode,
on the same prompts. A study is a list of commands of this package; `ssjax.reproduce` runs them.

    base      all weights, no streams
    finetune  LoRA on the base, no streams: what `shared` is compared with
    shared    LoRA on the base with streams: a new model
    lossless  LoRA for stream rows of the frozen base, with the early exit
    detached  the fine-tune by the main loss alone, and streams of its own beside it
    medusa    Medusa heads on the frozen base
    medusa-parent  the same, corrected by the parent as streams are
    draft     a quarter of the base's size, no streams, drafts for the base

    ablations, shorter trainings of `shared` with one change each:
    none                    as it is
    streams-2, streams-8    number of streams
    layers-N                number of stream layers
    reads-streams           the main stream reads its streams (the PMLR form)
    rotation                streams told apart by rotated values, not by an embedding
    start-rank-8            streams start after a low-rank map
    decay-0.6               stream j weighs 0.6 ** (j - 1) of the first
    no-root, no-parent      streams that do not know the root, or the parent
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]  # dotted config keys


@dataclasses.dataclass(frozen=True)
class TaskStudy:
    """One task: its experiment, and how much of it is trained and decoded."""

    task: str  # name of the experiment file and of the directory of its data
    variant: str
    base_steps: int
    steps: int  # of every fine-tune
    num_layers: int  # of the base
    draft: Overrides  # sizes of the draft model
    nodes: tuple[int, ...] = (2, 4, 8, 16, 32)  # draft nodes of the curves
    prompts: int = 500  # test prompts that are decoded, at most
    ablation_steps: int = 0  # of each ablation; 0: there are none

    @property
    def compared_nodes(self) -> int:
        """Draft nodes at which drafters and ablations are compared."""
        return max(n for n in self.nodes if n <= 16)


@dataclasses.dataclass(frozen=True)
class Training:
    """A model to be trained."""

    name: str  # of its directory
    overrides: Overrides
    steps: int
    on_base: bool = True


def _quarter(num_layers: int) -> Overrides:
    """Half the width of the small experiments and fewer layers: a quarter of the weights."""
    return {
        "model.embed_dim": 96,
        "model.num_heads": 3,
        "model.num_kv_heads": 1,
        "model.mlp_dim": 256,
        "model.num_layers": num_layers,
    }


_TINY = {"model.embed_dim": 16, "model.mlp_dim": 32, "model.num_layers": 2}
SUITES = {
    "small": (
        TaskStudy("e2e_nlg", "small", 1600, 400, 4, _quarter(3), prompts=200, ablation_steps=120),
        TaskStudy("dialogsum", "small", 600, 160, 6, _quarter(4), nodes=(4, 16), prompts=120),
        TaskStudy("sql_context", "small", 1600, 300, 6, _quarter(4), prompts=300),
    ),
    # The same commands in minutes on generated records, to see that they work; the figures mean
    # nothing.
    "smoke": (TaskStudy("dialogsum", "smoke", 24, 12, 3, _TINY, nodes=(2, 4), prompts=4),),
}

_LORA = {  # of the rank that is the default, the paper's 32
    "optimizer.learning_rate": 4e-3,
    "optimizer.decay": "linear",
    "optimizer.weight_decay": 0.0,
}
# The paper's weight of a stream. With 0.3 the streams won the LoRA over: the shared model of
# sql_context lost to the plain fine-tune: exact match 15.0 against 24.8, at rank 16.
_SHARED = {"adaptation.mode": "shared", "loss.stream_weight": 0.1} | _LORA
_FROZEN = {"adaptation.mode": "lossless", "loss.main_weight": 0.0, "loss.stream_weight": 1.0}
_MEDUSA = _FROZEN | {"drafter.kind": "medusa"}
_DETACHED = {"adaptation.mode": "detached", "loss.stream_weight": 1.0}
_PLAIN = {"streams.num_streams": 0}


def models(study: TaskStudy) -> list[Training]:
    """The models that are compared, each after what it needs."""
    fine_tunes = {
        "finetune": _SHARED | _PLAIN,
        "shared": _SHARED,
        "lossless": _LORA | _FROZEN | {"streams.exit_rank": 8},
        "detached": _LORA | _DETACHED,
        "medusa": _LORA | _MEDUSA,
        "medusa-parent": _LORA | _MEDUSA | {"drafter.parent_rank": 64},
    }
    return [
        Training("base", _PLAIN, study.base_steps, on_base=False),
        Training("draft", _PLAIN | study.draft, study.base_steps, on_base=False),
        *(Training(name, changes, study.steps) for name, changes in fine_tunes.items()),
    ]


def ablations(study: TaskStudy) -> list[Training]:
    """Changes of `shared`, one at a time, beside one without a change; [] if there are none."""
    if not study.ablation_steps:
        return []
    layers = (1, study.num_layers)  # the experiments have 2
    changes = {
        "none": {},
        "streams-2": {"streams.num_streams": 2},
        "streams-8": {"streams.num_streams": 8},
        **{f"layers-{n}": {"streams.num_stream_layers": n} for n in layers},
        "reads-streams": {"streams.main_reads_streams": True, "streams.root_rank": 0},
        # The angle of the paper falls with the longest sequence, of E2E 84 tokens.
        "rotation": {"streams.variation": "rotation", "streams.rotation_length": 84},
        "start-rank-8": {"streams.init_rank": 8},
        "decay-0.6": {"loss.stream_decay": 0.6},
        "no-root": {"streams.root_rank": 0},
        "no-parent": {"streams.parent_rank": 0},
    }
    return [
        Training(name, _SHARED | change, study.ablation_steps) for name, change in changes.items()
    ]


def drafters(study: TaskStudy, model: str, directories: Mapping[str, str]) -> list[str]:
    """What is compared on a model, as `ssjax.benchmark --drafters` wants it.

    Args:
      study: of the task.
      model: name of the training.
      directories: of the models by name.
    """
    if model == "finetune":
        return []  # its quality is of interest, not its speed
    trees = [f"streams:num_nodes={n}" for n in study.nodes]
    if model in ("shared", "detached"):
        return trees
    if model != "lossless":
        return [f"streams:num_nodes={study.compared_nodes}"]
    heads = [
        f"medusa@{directories[name]}:num_nodes={n}"
        for name in ("medusa", "medusa-parent")
        for n in study.nodes
    ]
    chains = [f"draft_model@{directories['draft']}:num_nodes={n}" for n in (2, 4)]
    merged = f"streams:num_nodes={study.compared_nodes}:lookup_nodes=4"
    lookup = ["prompt_lookup:num_nodes=4", merged]
    cartesian = cartesian_trees(study) if study.ablation_steps else []
    return [*trees, *heads, *chains, *lookup, *cartesian]


def cartesian_trees(study: TaskStudy) -> list[str]:
    """The paper's trees of 3 streams with k children a node, as they are and pruned."""
    named = []
    for k in (2, 3):
        tree = f"streams:tree=static:branching={k}/{k}/{k}"
        named += [tree, f"{tree}:kept_nodes={study.compared_nodes}"]
    return named
