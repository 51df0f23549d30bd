"""An index and its shards: `python -m eval.bench --only shards`, with `--full` a million pictures in ten shards.

Each is asked in a process of its own: warm queries by each mode, then the most memory that the process had, with the
mapped vectors, which the system may take back at any time, and without. A cold `sparsight search` is a process of its
own. Times are those of a processor, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from eval.bench.common import Options, Row, Section
from eval.bench.scale import make_index
from search.index import Index
from search.query import QUERY_MODES, QueryMode

SMALL, FULL, SHARDS, QUERIES = 20_000, 1_000_000, 10, 25
TEXTS = ("truck", "a fire engine", "a small dog", "a sailing ship", "a red bird")


def run(options: Options) -> Section:
    """Builds an index, cuts it, and asks both."""
    from indexer.shards import split_index

    n = FULL if options.full else SMALL
    with tempfile.TemporaryDirectory(dir=options.out) as made:
        whole, shards = Path(made) / "whole", Path(made) / "shards"
        make_index(whole, n)
        start = time.perf_counter()
        split_index(whole, shards, n // SHARDS)
        cut = time.perf_counter() - start
        rows = compared({"one index": whole, f"{SHARDS} shards": shards})
    return Section({f"{n:,} pictures": rows}, notes=[f"cut into {SHARDS} shards in {cut:.1f} s"])


def compared(folders: dict[str, Path]) -> list[Row]:
    """A row for each index."""
    return [{"index": name} | _asked(folder) | {"cold search s": _cold(folder)} for name, folder in folders.items()]


def _asked(folder: Path) -> Row:
    command = [sys.executable, "-m", "eval.bench.shards", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _cold(folder: Path) -> float:
    command = [sys.executable, "-m", "sparsight", "search", "a fire engine", "--index", str(folder)]
    times = []
    for _ in range(3):
        start = _children()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(_children() - start)
    return float(np.median(times))


def _children() -> float:
    """Seconds of a processor that the ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measured(folder: Path) -> Row:
    """Medians in ms of warm queries by mode, and MB."""
    row: Row = {}
    with Index(folder) as index:
        for mode in QUERY_MODES:
            row[f"{mode} ms"] = _median(partial(_ask, index, mode))
    held = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    megabytes = {name: int(held[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon")}
    return row | {"most MB": megabytes["VmHWM"], "without mapped MB": megabytes["RssAnon"]}


def _ask(index: Index, mode: QueryMode, text: str) -> None:
    index.search(text, mode=mode, all=True)


def _median(ask: Callable[[str], None]) -> float:
    for text in TEXTS:
        ask(text)
    times = []
    for i in range(QUERIES):
        start = time.process_time()
        ask(TEXTS[i % len(TEXTS)])
        times.append(1e3 * (time.process_time() - start))
    return float(np.median(times))


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]))))
