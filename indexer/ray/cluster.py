"""Ray, started or joined, and kept quiet; the stages of a build as Ray Data runs them."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from training.errors import CallError, SparsightError
from training.terminal import progress

STORE_BYTES = 500 << 20  # of Ray's object store on this machine: batches of prepared pictures pass through it
ANSWERS = 10.0  # seconds in which a cluster does
BLOCKS = 4096  # into which the work is cut at most: Ray keeps a record of each
TOKEN, TOKEN_FILE = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token"  # of a cluster
BIRTHS = 5  # in a row in which a worker may die before it has begun
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of what it will do in future
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS": "0",  # else what is held back is told at the end, on stdout
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_worker_niceness": "0",  # workers are as nice as the program, not nicer
}


class Machines(NamedTuple):
    """What a cluster has."""

    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """Where torch computes in the workers that have a GPU, where there are any."""
        return "cuda" if self.gpus else "cpu"


class Stage(NamedTuple):
    """A callable class, its arguments, and whether its workers have a GPU each. A call takes what a worker of the stage
    before gave, and gives any number of such things."""

    make: Callable[..., Callable[[Any], Iterator[Any]]]
    arguments: tuple[Any, ...]
    gpu: bool = False


class Done(NamedTuple):
    """What the last stage tells of an item: how many pictures it had, what went wrong, and a word to pass on."""

    pictures: int
    fault: str = ""
    note: str = ""


def need_ray() -> None:
    """Raises `CallError` where Ray is not installed; sets what it looks at when it is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    has_token = any(os.environ.get(name) for name in TOKEN) or TOKEN_FILE.is_file()
    if has_token and "ray" not in sys.modules:  # which reads it as it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray does so itself for the address `auto` alone
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as e:
        raise CallError(f"--engine ray needs Ray Data ({e.name} is not installed): install 'sparsight[ray]'") from e


@contextmanager
def cluster(address: str = "", *, gpus: bool = True) -> Iterator[Machines]:
    """Joins the cluster at an address, or starts one on this machine, which ends with the block; one that this process
    has joined already is used, and stays. gpus: whether to use its GPUs."""
    need_ray()
    import ray
    import ray.data

    mine = not ray.is_initialized()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    out, sys.stdout = sys.stdout, cast(TextIO, _WithoutRay(sys.stdout))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if mine and address:
            _refuse_unreachable(address)
            try:
                with _silent():
                    ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as e:
                reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
                raise SparsightError(
                    f"no Ray cluster at --address {address}: {reason}; if it asks for a token, copy ~/.ray/auth_token "
                    "of its first machine to this one"
                ) from e
        elif mine:
            cpus = max(2, os.cpu_count() or 1)  # two stages run side by side
            settings: dict[str, Any] = {
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
            }
            try:
                with _silent():
                    ray.init("local", **settings, **quiet)
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as e:
                reason = " ".join(str(e).split())[:200] or type(e).__name__
                raise SparsightError(f"Ray cannot be started on this machine: {reason}") from e
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself
            with suppress(ValueError):  # only the main thread may
                signal.signal(number, handler)
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_consecutive_actor_init_deaths = BIRTHS
        held = ray.cluster_resources()
        yield Machines(max(1, int(held.get("CPU", 1))), int(held.get("GPU", 0)) if gpus else 0)
    finally:
        if mine:
            ray.shutdown()
        sys.stdout = out


def _refuse_unreachable(address: str) -> None:
    """Raises `CallError` for what is no address, `SparsightError` where nothing answers: Ray would ask for minutes."""
    if address == "auto":  # Ray looks it up, and says at once where there is none
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise CallError(f"--address {address}: give auto, or HOST:PORT of a running cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS).close()
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise SparsightError(f"no Ray cluster at --address {address}: {reason}") from e


class _WithoutRay:
    """A stream on which all may write but Ray's threads: they tell on stdout of each worker that died."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        from_ray = threading.current_thread().name.startswith("ray_")
        return len(text) if from_ray else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what Ray's C++ writes as it begins off stderr: it tells there that it was told to be quiet."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def run_stages(
    what: str, items: Sequence[Any], stages: Sequence[Stage], machines: Machines, total: int, done: int = 0
) -> Iterator[Done]:
    """Runs each item through the stages; yields what is done, in any order. Progress is told of `total` pictures, of
    which `done` were done before.

    A worker that dies is started again, and its task given to it or to another; how often, the stages count
    (`indexer.ray.tries`), for Ray tries for ever. Raises `SparsightError` where a task
    fails for a reason that another try would not mend.
    """
    import ray
    import ray.data

    packed = [{"item": pickle.dumps(item)} for item in items]
    rows: ray.data.Dataset = ray.data.from_items(packed, override_num_blocks=min(len(items), BLOCKS))
    share = 1.0 if machines.cpus >= len(stages) else machines.cpus / len(stages)
    for stage in stages:
        most = machines.gpus if stage.gpu else machines.cpus
        rows = rows.map_batches(
            Worker,
            fn_constructor_args=(stage.make, *stage.arguments),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, most), max_tasks_in_flight_per_actor=2),
            num_cpus=share,
            num_gpus=1 if stage.gpu else 0,
        )
    with progress(what, total) as step:
        step(done)
        try:
            for row in rows.iter_rows():
                told: Done = pickle.loads(row["item"])
                step(told.pictures)
                yield told
        except Exception as e:
            if type(e).__module__.partition(".")[0] == "ray" or isinstance(e, ray.exceptions.RayError):
                raise _fault(e) from e
            raise


class Worker:
    """A stage's object in a process of its own: unpacks what it is given, and packs what it gives."""

    def __init__(self, make: Callable[..., Callable[[Any], Iterator[Any]]], *arguments: Any):
        self._do = make(*arguments)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for item in batch["item"]:
            given = pickle.loads(item)
            try:
                for made in [given] if isinstance(given, Done) else self._do(given):
                    yield {"item": [pickle.dumps(made)]}
            except SparsightError as e:
                yield {"item": [pickle.dumps(Done(0, str(e)))]}
            except OSError as e:
                what = f"{e.strerror or e}: {e.filename}" if e.filename else str(e)
                yield {"item": [pickle.dumps(Done(0, what))]}


def _fault(e: BaseException) -> SparsightError:
    """What made a task fail, in one line."""
    cause: BaseException | None = e
    while cause is not None:
        if isinstance(cause, SparsightError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line.strip() for line in str(e).strip().splitlines() if line.strip()] or [type(e).__name__]
    return SparsightError(f"a task failed on Ray: {lines[-1]}; what is finished is kept, run it again")
