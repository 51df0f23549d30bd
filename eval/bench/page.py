"""What the page costs: `python -m eval.bench --only page`, over an index of 60,000 pictures served on this machine.

Each query is a word or two that no other query has, so that nothing is answered from memory. An answer is the whole
page without its thumbnails. Clients and server share the machine's cores.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlencode

import click
import numpy as np

from eval.bench.common import Options, Row, Section, at_most
from eval.bench.scale import make_index
from training.errors import SparsightError

PICTURES = 60_000
STARTS, QUERIES, CLIENTS, SECONDS = 5, 300, 50, 30


@contextmanager
def served(index: Path) -> Iterator[tuple[int, float]]:
    """Serves an index; yields the port, and the seconds until the first page came."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "sparsight", "serve", "--port", "0", "--index", str(index)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SparsightError(f"`sparsight serve` did not start: {line.strip()}")
        asked(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60), "/")
        yield int(found[1]), time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def asked(connection: http.client.HTTPConnection, path: str) -> tuple[int, int]:
    """The status of an answer, and its bytes."""
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, len(answer.read())


def queries(words: list[str]) -> Iterator[str]:
    """Addresses of searches by a word, then by two, each once."""
    for n in count():
        text = words[n % len(words)] + (f" {words[(n // len(words) * 7 + n) % len(words)]}" if n >= len(words) else "")
        yield "/?" + urlencode({"text": text})


def run(options: Options) -> Section:
    """How fast the page starts and answers, alone and to 50 clients at once."""
    from indexer.store import Store
    from indexer.store.chance import index_best
    from training.encoders import open_encoder

    encoder = open_encoder()
    words = list(encoder.concepts)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.out) as place:
        index = Path(place).absolute() / "index"
        make_index(index, PICTURES)
        with Store(index) as store:
            index_best(store, encoder.encode_texts)  # as `sparsight index` does
        starts = []
        for _ in range(STARTS):
            with served(index) as (_, seconds):
                starts.append(seconds)
        rows.append({"work": "start to the first page, s", "median": np.median(starts), "worst": max(starts)})
        with served(index) as (port, _):
            addresses = queries(words)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            times, sizes = [], []
            for i in range(QUERIES + 20):  # the first warm up
                address = next(addresses)
                start = time.perf_counter()
                _, size = asked(connection, address)
                if i >= 20:
                    times.append(1000 * (time.perf_counter() - start))
                    sizes.append(size / 1000)
            found = {"p99": np.percentile(times, 99), "worst": max(times), "n": len(times)}
            rows.append({"work": "a text query's page, ms", "median": np.median(times), **found})
            rows.append({"work": "bytes of the page, kB", "median": np.median(sizes), "worst": max(sizes)})
            rows.append(crowd(port, addresses))
    for row in rows:
        click.echo(row, err=True)
    return Section({f"the page over {PICTURES:,} pictures": rows}, claims(rows))


def crowd(port: int, addresses: Iterator[str]) -> Row:
    """Many clients, each of which asks again as soon as it is answered."""
    lock, end = threading.Lock(), time.monotonic() + SECONDS
    times: list[float] = []
    errors: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            with lock:
                address = next(addresses)
            start = time.perf_counter()
            try:
                status, _ = asked(connection, address)
            except (OSError, http.client.HTTPException) as e:
                errors.append(repr(e))
                connection.close()
            else:
                times.append(1000 * (time.perf_counter() - start))
                errors.extend([str(status)] if status != 200 else [])

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return {
        "work": f"{CLIENTS} clients for {SECONDS} s, ms",
        "median": np.median(times),
        "p99": np.percentile(times, 99),
        "worst": max(times),
        "n": len(times),
        "errors": len(errors),
    }


def claims(rows: list[Row]) -> list[Row]:
    """The bars and what was measured."""
    start, query, size, many = rows
    held = [
        ("start to the first page, s", 3.0, start["median"]),
        ("a text query's page, median ms", 100.0, query["median"]),
        ("a text query's page, 99th percentile ms", 300.0, query["p99"]),
        ("bytes of the page, kB", 150.0, size["worst"]),
        (f"errors to {CLIENTS} clients", 0.0, many["errors"]),
    ]
    return at_most(held)
