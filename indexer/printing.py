"""What the commands that build and change an index say of what they did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from indexer.milvus import Address, shown_place
from training.terminal import printable

if TYPE_CHECKING:
    from indexer.build import Built
    from indexer.update import Added


def print_added(index_dir: Path | Address, done: Added, as_json: bool, verb: str) -> None:
    """What an addition did, or, by another verb than `added`, would do."""
    plan, changed = done.plan, set(done.plan.changed)
    ids: list[int | None] = [*done.ids] or [None] * len(plan.added)
    added = [(path, image_id) for (path, _), image_id in zip(plan.added, ids, strict=True)]
    if as_json:
        lines = [
            *({"path": p, "status": "changed" if p in changed else "added", "id": i} for p, i in added),
            *({"path": p, "status": "moved", "id": i} for i, p in plan.moved.items()),
            *({"path": p, "status": "duplicate", "of": of} for p, of in plan.duplicates),
            *({"path": p, "status": "skipped", "reason": reason} for p, reason in done.skipped),
        ]
        for line in lines:
            click.echo(json.dumps(line))
        return
    list_items("duplicates, not added", [(path, f"the same as {of}") for path, of in plan.duplicates])
    list_skipped("skipped", done.skipped)
    if verb != "added":
        list_items(verb, [(path, "its file has changed" if path in changed else "new") for path, _ in added])
    replaced = sum(path in changed for path, _ in added)
    click.echo(
        f"{shown_place(index_dir)}: {len(added) - replaced} {verb}, {replaced} changed, {len(plan.moved)} moved, "
        f"{len(plan.duplicates)} duplicates, {len(plan.unchanged)} unchanged, {len(done.skipped)} skipped; "
        f"{done.n} pictures"
    )


def list_skipped(what: str, skipped: Sequence[tuple[str, str]]) -> None:
    """What was not taken, on stderr: counted where its kind or its name says why, else one by one."""
    from indexer.pictures import summarised

    lines, rest = summarised(skipped)
    list_items(what, rest)
    for line in lines:
        click.echo(printable(line), err=True)


def list_items(what: str, items: Sequence[tuple[str, str]], shown: int = 5) -> None:
    """The first few paths with what is to be said of them, on stderr."""
    if not items:
        return
    click.echo(f"{what}: {len(items)}", err=True)
    for path, note in items[:shown]:
        click.echo(f"  {printable(path)}: {printable(note)}", err=True)
    if len(items) > shown:
        click.echo(f"  ... and {len(items) - shown} more", err=True)


def print_built(index_dir: Path | Address, built: Built) -> None:
    """What a build made."""
    from indexer.store import DATABASE

    meta = built.meta
    listed = "" if isinstance(index_dir, Address) else f", listed in table `skipped` of {index_dir / DATABASE}"
    list_skipped(f"skipped{listed}", built.skipped)
    click.echo(
        f"{shown_place(index_dir)}: {meta.n} pictures, {meta.m} concepts, "
        f"{meta.nnz / max(1, meta.n):.2f} concepts a picture ({meta.embedded})"
        + (f", residuals by {meta.residual}" if meta.residual else "")
        + ("" if meta.keeps_vectors else ", no exact embeddings")
    )
