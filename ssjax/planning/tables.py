"""Plans and shardings as tables on the terminal."""

from rich.console import Console
from rich.table import Table

from ssjax.planning.topologies import GIB


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


def show_plan(result: dict) -> None:
    """Prints both programs side by side."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    table = Table(
        "per device", "train step", "decode, a pass", title=f"{result['topology']}, {mesh}"
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
