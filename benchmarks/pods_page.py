"""The page of `pod_plans`: docs/pods.md, from what was planned."""

import json
from pathlib import Path

from ssjax.parallel import partitioning
from ssjax.planning.passes import step_costs
from ssjax.planning.tables import predicted_rows
from ssjax.planning.topologies import GIB

HEADER = """# Plans for TPU pods

Made by `python benchmarks/pod_plans.py` with the TPU compiler of `jax[tpu]`, on a machine without
a TPU. **Nothing here was measured on a TPU.** Each program is the real train step, decode loop or
prefill, compiled for the topology; memory is what the compiler reports per device, collectives are
read from the compiled program. Times are of two kinds:

- *At least*: matrix products, memory traffic and collectives over the chip's published peaks, the
  largest of the three.
- *Predicted by the compiler*: what it expects of every operation, added up over the program, at the
  clock of the chip. Products of 8192 x 8192 come out at 88 % of the peak on v5e and at 70 % on v6e,
  products that wait for their weights at 70 and 82 % of the bandwidth, small operations and copies
  at two to four times what their bytes need. Sorts, gathers, scatters and Pallas kernels carry no
  estimate and are counted instead; a fused attention kernel is one of them. So compare columns, and
  take no figure for a time on a TPU.

The version of a program is the date of the last change to `ssjax/models`, `ssjax/decoding` and
`ssjax/training` before it was planned; older ones were not planned anew."""

PODS = """The fine-tune is the paper's on DialogSum: prompts of 768 tokens, targets of 128, 4
streams in the upper half of the layers, rank 8 early-exit adapter, LoRA of rank 32 or all weights,
bfloat16 with float32 for what is trained, `train.remat=full`, splash attention. Decoding: 32 draft
nodes a pass, greedy, streams deferred. The mesh is data x fsdp x tensor; passes are planned on the
one that a training decodes on, those of 2026-11-23 on one with as few tensor shards as there are
key/value heads. tpu7x has two devices a chip.

For tpu7x the compiler of libtpu 0.0.42 crashes on train steps with fsdp, and does not end within
two minutes on meshes without (tried with 4 layers), whether with streams and splash attention or
without. Its decode loop compiles."""

PASSES = """Greedy, batch 1, bfloat16, prompts of up to 512 tokens and outputs of 128; 4 streams in
the top 4 layers that know their root and parents, deferred, best-first trees. One node is plain
decoding, and the step cost is a pass over a plain one."""

TREES = """SmolLM2-135M as fine-tuned on E2E NLG ([real models](real-models.md)): tokens per call
from its calibration on a CPU, passes predicted by the compiler, bfloat16, batch 1, greedy. Most
of a plain pass of so small a model is hundreds of small operations, not the reading of its weights
(0.33 ms on v5e), and a draft does not add as many: larger models gain less.

```bash
python -m ssjax.plan --acceptance RUN --topology v6e:1x1 --config.model.dtype=bfloat16
```
"""


def read_trees(docs: Path) -> dict[str, dict]:
    """By topology, plans of the real run of docs/results, as `ssjax.plan --json` writes them."""
    found = {}
    for path in sorted((docs / "results" / "smollm2-135m").glob("plan-*.json")):
        plan = json.loads(path.read_text())
        found[plan["topology"]] = plan
    return found


def markdown(passes: list[dict], pods: list[dict], trees: dict[str, dict]) -> str:
    """The document."""
    lines = [HEADER, "\n## A decode pass on one chip\n", PASSES]
    for kind, of in (("passes", "nodes, root included"), ("prefill", "tokens of a prompt")):
        if kind == "prefill":
            lines += ["\n## Reading a prompt on one chip"]
        rows = [row for row in passes if row["kind"] == kind]
        for name, topology in dict.fromkeys((row["model"], row["topology"]) for row in rows):
            own = [r for r in rows if (r["model"], r["topology"]) == (name, topology)]
            programs = {row["count"]: row["program"] for row in own}
            lines += _by_part(f"{name} on {topology.partition(':')[0]}", of, programs)
    lines += _trees(trees) if trees else []
    lines += ["\n## Train steps by part"]
    for row in pods:
        if row["streams"] and "predicted" in row["train"]:
            title = f"{row['model']} on {row['topology']}"
            lines += _by_part(title, "ms predicted by the compiler", {"": row["train"]})
    lines += ["\n## Train steps and decode passes of pods\n", PODS]
    for kind, title in (("train", "Train step"), ("decode", "Decode pass")):
        lines += [f"\n### {title}\n"]
        time_of = "step" if kind == "train" else "pass"
        rate = "tokens/s at most" if kind == "train" else "tokens/s at most, 1 a call"
        lines += _row(
            *("model", "topology", "mesh", "batch", "fits", "peak of HBM, GiB"),
            *(f"{time_of} at least, ms", f"{time_of} predicted, ms", "bound by", rate),
            *("collectives a device", "version"),
            heads=True,
        )
        lines += [_line(row, kind) for row in pods if kind in row and row["streams"]]
    with_streams = next((r for r in pods if _is_cost_pair(r, True)), None)
    without = next((r for r in pods if _is_cost_pair(r, False)), None)
    if with_streams and without:
        lines += ["\n## What the streams cost\n", _cost_of_method(with_streams, without)]
    return "\n".join(lines) + "\n"


def _row(*cells, heads=False):
    line = "| " + " | ".join(cells) + " |"
    return [line, "| " + " | ".join(["---"] * len(cells)) + " |"] if heads else [line]


def _by_part(title, name, programs):
    """A table of programs, a column each."""
    versions = " and ".join(dict.fromkeys(p["version"] for p in programs.values()))
    lines = [f"\n{title}, milliseconds predicted by the compiler (version {versions}):\n"]
    lines += _row(name, *map(str, programs), heads=True)
    for part, cells in predicted_rows(list(programs.values())).items():
        lines += _row(part, *cells)
    if costs := step_costs(programs):
        lines += _row("**step cost**", *(f"**{cost:.2f}**" for cost in costs.values()))
    lines += _row("matrix products at the peak, share", *map(_share, programs.values()))
    known = [program if "traffic" in program else None for program in programs.values()]
    traffic = [f"{p['traffic'] / GIB:.2f}" if p and p["traffic"] else "-" for p in known]
    lines += _row("memory traffic, GiB", *traffic)
    lines += _row("fits", *("yes" if p["fits"] else "no" for p in programs.values()))
    return lines


def _share(program):
    predicted = program.get("predicted")
    return f"{program['seconds']['compute'] / predicted['seconds']:.0%}" if predicted else "-"


def _trees(trees):
    lines = ["\n## The tree of a real run\n", TREES]
    nodes = list(dict.fromkeys(n for plan in trees.values() for n in plan["passes"]))
    lines += _row(
        *("chip", *(f"pass of {n}, ms" for n in nodes)),
        *("tree to use", "tokens per call", "speedup, predicted"),
        heads=True,
    )
    for topology, plan in trees.items():
        seconds = {n: each["predicted"]["seconds"] for n, each in plan["passes"].items()}
        chosen = plan["chosen"]
        drafter, tokens = chosen["drafter"], chosen["tokens_per_call"]
        kind = drafter["kind"].replace("_", "-")
        size = len(drafter["ranks"]) if kind == "static" else drafter.get("nodes", 0)
        tree = f"{kind}, {size} nodes, {drafter['streams']} streams" if size else "plain"
        lines += _row(
            topology.partition(":")[0],
            *(f"{seconds[n] * 1e3:.2f}" for n in nodes),
            tree,
            f"{tokens:.2f}",
            f"{tokens * seconds['1'] / chosen['seconds_per_pass']:.2f}",
        )
    return lines


def _is_cost_pair(row, streams):
    return (row["model"], row["topology"]) == ("OpenLLaMA-7B, LoRA", "v5e:4x4") and bool(
        row["streams"]
    ) == streams


def _cost_of_method(ours, plain):
    ours, plain = ours["train"], plain["train"]
    bound = [max(p["seconds"].values()) for p in (ours, plain)]
    return (
        "OpenLLaMA-7B with LoRA on v5e:4x4, 4 streams in 16 of 32 layers (the paper's v1 form), "
        "over the same step without streams, both compiled for TPU: operations "
        f"{ours['flops'] / plain['flops']:.2f}, memory traffic "
        f"{ours['traffic'] / plain['traffic']:.2f}, bound of the time "
        f"{bound[0] / bound[1]:.2f}, peak memory {ours['peak'] / plain['peak']:.2f}."
    )


def _line(row, kind):
    program, mesh = row[kind], row["mesh"][kind]
    written = " x ".join(str(mesh[axis]) for axis in partitioning.MESH_AXES)
    cells = [row["model"], row["topology"], written, str(row["batch_size"][kind])]
    version = program["version"]
    if "peak" not in program:
        return _row(*cells, "not known", *["-"] * 5, program["error"], version)[0]
    peak = f"{program['peak'] / GIB:.1f} of {row['hbm'] / GIB:.0f}"
    if not program["fits"]:
        return _row(*cells, "**no**", peak, *["-"] * 4, program["advice"], version)[0]
    bound = max(program["seconds"], key=program["seconds"].get)
    seconds = program["seconds"][bound]
    tokens = row["batch_size"][kind] * (row["num_tokens"] if kind == "train" else 1)
    collectives = ", ".join(
        f"{name} {count}: {size / GIB:.2f} GiB"
        for name, (count, size) in program["collectives"].items()
    )
    predicted = program.get("predicted")
    cells += ["yes", peak, f"{seconds * 1e3:,.1f}"]
    cells += [f"{predicted['seconds'] * 1e3:,.1f}" if predicted else "-", bound]
    return _row(*cells, f"{tokens / seconds:,.0f}", collectives, version)[0]
