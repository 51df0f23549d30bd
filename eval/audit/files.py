"""The audit's files: findings.jsonl, one finding a line, and index.html, one page that holds everything."""

from __future__ import annotations

import json
from pathlib import Path

from eval.audit.run import Audit
from eval.audit.subject import Shown
from eval.template import page_of
from indexer.store import Store
from training.errors import SparsightError
from training.files import write_whole

JSON_LINES, PAGE = "findings.jsonl", "index.html"
FEW = 8  # pictures of a group, and of each side of a crutch, that the page shows


def write_audit(folder: Path, audit: Audit, store: Store, most: int) -> None:
    """Writes the audit into `folder`; most: findings of each kind that the page shows.

    Raises `SparsightError` where the folder cannot be written.
    """
    lines = "".join(json.dumps(finding) + "\n" for finding in audit.findings())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / JSON_LINES, lines.encode())
        write_whole(folder / PAGE, page(audit, store, most).encode())
    except OSError as e:
        raise SparsightError(f"cannot write the audit to {folder}: {e.strerror or e}; choose another --out") from e


def page(audit: Audit, store: Store, most: int) -> str:
    """The page (`page.html`), which loads nothing from outside."""
    thumbnails = store.thumbnails(sorted({shown.id for shown in _shown(audit, most)}))
    return page_of("eval.audit", thumbnails, audit=audit, most=most, few=FEW)


def _shown(audit: Audit, most: int) -> list[Shown]:
    found = [error.picture for error in audit.labels[:most]]
    found += [outlier.picture for outlier in audit.outliers[:most]]
    for group in audit.duplicates[:most]:
        found += group.pictures[:FEW]
    for crutch in audit.crutches[:most]:
        for pictures in (crutch.having, crutch.lacking, crutch.strangers, crutch.changed):
            found += pictures[:FEW]
    return found
