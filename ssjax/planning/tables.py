"""Plans and shardings as tables on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ssjax.planning.predicted_time import IN_ORDER
from ssjax.planning.topologies import GIB

PREDICTED = "predicted by the compiler"


def show_shardings(rows: list[dict]) -> None:
    """Prints a line a leaf, and the sum."""
    table = Table("leaf", "shape", "divided over", "bytes per device", show_edge=False)
    for row in rows:
        over = ", ".join(
            "-" if part is None else part if isinstance(part, str) else "+".join(part)
            for part in row["sharding"]
        )
        shape = "x".join(map(str, row["shape"])) or "scalar"
        table.add_row(row["leaf"], f"{shape} {row['dtype']}", over, f"{row['bytes_per_device']:,}")
    total = sum(row["bytes_per_device"] for row in rows)
    table.add_row("all", "", "", f"{total:,}")
    Console(width=160).print(table)


def show_passes(result: dict) -> None:
    """Prints decode passes by number of nodes, and prefills by length of the prompts."""
    sampling = result["sampling"]
    how = f"sampled at temperature {sampling['temperature']:g}" if sampling["temperature"] else ""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    about = f"{result['topology']}, {mesh}, {result['dtype']}, batch {result['batch_size']}"
    console = Console(width=120, highlight=False)
    if result["passes"]:
        order = "streams deferred" if result["deferred"] else "streams beside every node"
        how = "each row in its own way" if result["serving"] else how or "greedy"
        about_pass = f"{how}, {order}, prompt {result['prompt_length']}"
        title = f"a decode pass, ms {PREDICTED}; {about_pass}; {about}"
        costs = [f"{result['step_cost'][nodes]:.2f}" for nodes in result["step_cost"]]
        more = {"step cost, to a plain pass": costs} if costs else {}
        if result["serving"]:
            more |= _throughput(result)
        console.print(_predicted_table("nodes, root included", title, result["passes"], more))
    if result["prefill"]:
        title = f"a prefill and the first draft, ms {PREDICTED}; {about}"
        console.print(_predicted_table("tokens of a prompt", title, result["prefill"], {}))


def _throughput(result) -> dict[str, list[str]]:
    """Rows of a server whose slots are all busy."""
    rates = {}
    for nodes, values in result["passes"].items():
        seconds = values.get("predicted", {}).get("seconds")
        rates[nodes] = result["batch_size"] / seconds if seconds else None
    cells = ["-" if rate is None else f"{rate:,.0f}" for rate in rates.values()]
    return {"tokens a second for each token per call": cells}


def _predicted_table(name, title, programs, more) -> Table:
    """A column a program; rows by part."""
    table = Table(name, title=title, title_justify="left")
    for key in programs:
        table.add_column(str(key), justify="right")
    for row, values in (predicted_rows(list(programs.values())) | more).items():
        table.add_row(row, *values)
    table.add_row("memory traffic", *(_size(p["traffic"] or None) for p in programs.values()))
    table.add_row("peak memory", *(_size(p["peak"]) for p in programs.values()))
    table.add_row("fits", *("yes" if p["fits"] else "NO" for p in programs.values()))
    return table


def predicted_rows(programs: Sequence[dict]) -> dict[str, list[str]]:
    """What the compiler predicts of programs, as cells by name of the row; milliseconds.

    Args:
      programs: as `experiments.described` returns them; of those that were not compiled nothing
        is known.
    """
    known = [program.get("predicted") for program in programs]
    there = {part for each in known if each for part in each["parts"]}

    def cells(of):
        return ["-" if each is None else of(each) for each in known]

    def milliseconds(seconds):
        return "-" if seconds is None else f"{seconds * 1e3:,.3f}"

    rows = {
        part: cells(lambda each, part=part: milliseconds(each["parts"].get(part)))
        for part in IN_ORDER
        if part in there
    }
    rows["all parts"] = cells(lambda each: milliseconds(each["seconds"]))
    rows["of these in small operations"] = cells(
        lambda each: f"{milliseconds(each['small']['seconds'])} in {each['small']['operations']:,}"
    )
    rows["operations without an estimate"] = cells(
        lambda each: f"{sum(each['without_estimate'].values()):,}"
    )
    return rows


def show_plan(result: dict) -> None:
    """Prints both programs side by side."""
    mesh, decode_mesh = (
        " x ".join(f"{axis} {size}" for axis, size in result[name].items())
        for name in ("mesh", "decode_mesh")
    )
    where = mesh if mesh == decode_mesh else f"{mesh}; decoding on {decode_mesh}"
    table = Table(
        "per device", "train step", "decode, a pass", title=f"{result['topology']}, {where}"
    )
    programs = [result["train"], result["decode"]]

    def row(name, values):
        table.add_row(name, *values)

    for name in dict.fromkeys(key for program in programs for key in program["inputs"]):
        row(name, [_size(p["inputs"].get(name)) for p in programs])
    row("temporary", [_size(p["temporary"]) for p in programs])
    limit = f" of {_size(result['hbm'])}" if result["hbm"] else ""
    row("peak memory", [_size(p["peak"]) + limit for p in programs])
    row("operations", [f"{p['flops'] / 1e12:,.3f} T" for p in programs])
    row("memory traffic", [_size(p["traffic"] or None) for p in programs])
    for kind in dict.fromkeys(key for program in programs for key in program["collectives"]):
        counts = [p["collectives"].get(kind) for p in programs]
        row(kind, [f"{c[0]}, {_size(c[1])}" if c else "-" for c in counts])
    if any("seconds" in p for p in programs):
        for name in ("compute", "memory", "interconnect"):
            values = [p["seconds"][name] * 1e3 if "seconds" in p else None for p in programs]
            row(f"{name}, at least", ["-" if v is None else f"{v:,.2f} ms" for v in values])
        train, decode = programs
        slowest = [max(p["seconds"].values()) if "seconds" in p else None for p in programs]
        tokens = [result["batch_size"] * result["num_tokens"], result["decode_batch_size"]]
        rates = [None if s is None else t / s for t, s in zip(tokens, slowest, strict=True)]
        unit = ["tokens/s", "tokens/s at 1 a call"]
        row(
            "roofline, all devices",
            ["-" if r is None else f"{r:,.0f} {u}" for r, u in zip(rates, unit, strict=True)],
        )
    if any("predicted" in p for p in programs):
        row(f"ms {PREDICTED}:", ["", ""])
        for name, cells in predicted_rows(programs).items():
            row(name, cells)
    row("fits", ["yes" if p["fits"] else "NO" for p in programs])
    console = Console(width=100)
    console.print(table)
    for name in ("train", "decode"):
        if "advice" in result[name]:
            console.print(f"{name} does not fit: {result[name]['advice']}", highlight=False)


def _size(count) -> str:
    if count is None:
        return "-"
    if count >= 0.1 * GIB:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / 2**20:,.2f} MiB"
