"""Tables of the benchmarks' page, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def written(columns: Mapping[str, str], rows: Sequence[Row]) -> str:
    """A table of rows. columns: for each heading how a row's figures are written, as `str.format` takes it.

    >>> print(written({"n": "{n:,}"}, [{"n": 1000}]))
    | n |
    | --- |
    | 1,000 |
    """
    return markdown([*columns], [[form.format_map(row) for form in columns.values()] for row in rows])


def rows_of(bench: Row, section: str, beginning: str) -> list[Row]:
    """The rows of the table of a section whose title begins so; none where it was not measured."""
    tables = bench.get(section, {}).get("tables", {})
    return next((rows for title, rows in tables.items() if title.startswith(beginning)), [])


def coders(bench: Row, *words: str) -> str:
    """Rows a second of each method for the problems whose name holds one of `words`, and how many times as fast ours
    is."""
    rows = [row for row in rows_of(bench, "coder", "the coder") if any(word in row["problem"] for word in words)]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    of = {(row["problem"], row["way"]): row for row in rows}
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        ours = way == "sparsight"
        cells = []
        for problem in problems:
            row = of.get((problem, way))
            shown = "" if row is None else f"{row['rows_per_s']:,.0f}"
            cells.append(f"**{shown}**" if ours else shown and f"{shown} ({row['times']:.3g} ×)" if row else "")
        lines.append([f"**{way}**" if ours else way, *cells])
    return markdown(["method", *(p.replace("bundled", "real") for p in problems)], lines)


def refits(bench: Row) -> str:
    """What least squares adds."""
    columns = {
        "dictionary": "{problem}",
        "solver": "{solver}",
        "rows": "{n:,}",
        "concepts": "{concepts:.3g}",
        "seconds": "{seconds:.3g}",
        "with least squares": "{with_refit:.3g}",
        "added": "{percent:.0f} %",
    }
    rows = rows_of(bench, "coder", "refitting")
    return written(columns, [row | {"percent": 100 * row["added"]} for row in rows])


def growth(bench: Row) -> str:
    """How the coder's time and memory grow."""
    columns = {
        "n": "{n:,}",
        "K": "{K:,}",
        "d": "{d}",
        "concepts": "{concepts:.3g}",
        "seconds": "{seconds:.3f}",
        "rows a second": "{rows_per_s:,.0f}",
        "peak MB": "{peak_MB:.0f}",
    }
    return written(columns, rows_of(bench, "coder", "scaling"))


def scale(bench: Row) -> str:
    """What each work takes as an index grows."""
    rows = rows_of(bench, "scale", "an index as it grows")
    sizes = sorted({row["pictures"] for row in rows})
    of = {(row["work"], row["pictures"]): row for row in rows if "seconds" in row}
    lines = []
    for work in dict.fromkeys(name for name, _ in of):
        most = of.get((work, sizes[-1]), {})
        seconds = [short(of.get((work, size), {}).get("seconds")) for size in sizes]
        cpu = None if "warm" in work else most.get("cpu_s")  # that of all its queries
        rest = [short(cpu), whole(most.get("memory_mb")), whole(most.get("written_mb"))]
        lines.append([work, *seconds, *rest])
    return markdown(["work", *(f"{size:,}: s" for size in sizes), "CPU s", "MB of memory", "MB written"], lines)


UNITS = {  # how a unit cost is told, and how its figure is written
    "read": ("read a JPEG of 1024 × 768 pixels: decode, hash, prepare, thumbnail", "{:.2f} ms"),
    "encode": ("encode it by a CLIP ViT-B/32 on a CPU", "{:.0f} ms"),
    "code": ("code it: 8 of 10,000 concepts, 512 numbers", "{:.2f} ms"),
    "shard": ("write it to shards", "{:.3f} ms"),
    "load": ("load it from shards into the embedded store", "{:.3f} ms"),
    "dense": ("a dense query, exact, over a million pictures", "{:.0f} ms"),
    "sparse": ("a sparse query by a text (all concepts have a score) over a million pictures", "{:.0f} ms"),
    "shard_bytes": ("in shards, thumbnail of 1.2 kB and all", "{:,.0f} bytes"),
    "vectors_bytes": ("in the embedded store", "{:,.0f} bytes"),
    "codes_bytes": ("in the embedded store without vectors (`--no-vectors`)", "{:,.0f} bytes"),
}


def units(bench: Row) -> str:
    """What each stage takes of one core for a picture, and what each store takes of a disk."""
    rows = []
    for row in rows_of(bench, "planning", "unit costs"):
        told, form = UNITS[row["unit cost"]]
        rows.append([told, form.format(row["measured"] * (1 if "bytes" in form else 1000))])
    return markdown(["measured", "of one core, or on disk"], rows)


def needs(bench: Row) -> str:
    """What collections of some sizes need, derived from the unit costs."""
    rows = rows_of(bench, "planning", "needs")
    told = [name for name in rows[0] if name != "pictures"] if rows else []
    lines = [
        [name, *(f"{row[name]:,.3g}" if row[name] < 100 else f"{row[name]:,.0f}" for row in rows)] for name in told
    ]
    return markdown(["derived", *(f"{row['pictures']:,} pictures" for row in rows)], lines)


def pipeline(bench: Row) -> str:
    """What each step from embeddings to answers takes."""
    rows = rows_of(bench, "pipeline", "from embeddings")
    columns = {
        "step": "{step}",
        "pictures": "{pictures:,}",
        "CPU s": "{cpu s:.0f}",
        "s": "{s:.0f}",
        "MB at the most": "{most MB:,.0f}",
    }
    return written(columns, rows)


def short(value: float | None) -> str:
    """Seconds to two or three digits.

    >>> [short(x) for x in (None, 0.00512, 0.0931, 0.64, 8.888, 17.2)]
    ['', '0.005', '0.093', '0.64', '8.89', '17']
    """
    if value is None:
        return ""
    digits = 0 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}"


def whole(value: float | None) -> str:
    """Megabytes; what is less than one is left out."""
    return "" if value is None or value < 1 else f"{value:.0f}"
