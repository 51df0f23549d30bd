"""What an addition has to do, from what an index knows and what its files hold now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Plan(NamedTuple):
    """added: path and content hash of pictures that the index does not hold · moved: id → the path where a picture's
    content lies now · removed: ids of pictures whose file holds another content now · duplicates: path, and the path of
    the picture with that content · changed, unchanged: paths."""

    added: list[tuple[str, str]]
    moved: dict[int, str]
    removed: list[int]
    duplicates: list[tuple[str, str]]
    changed: list[str]
    unchanged: list[str]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.moved or self.removed)


def plan_addition(
    known: Mapping[str, tuple[int, str | None]],
    seen: Mapping[str, str],
    exists: Callable[[str], bool] = lambda path: True,
) -> Plan:
    """Each content is to be in the index once, under a path that holds it.

    known: path → id and content hash, of the index · seen: path → content hash, of files just read · exists: whether
    there is a file at a known path that was not read.
    """
    holders: dict[str, list[tuple[int, str]]] = {}
    for path, (image_id, content_hash) in known.items():
        if content_hash is not None:
            holders.setdefault(content_hash, []).append((image_id, path))
    plan = Plan([], {}, [], [], [], [])
    taken: dict[str, str] = {}
    for path, content_hash in seen.items():
        if path in known:
            if known[path][1] == content_hash:
                plan.unchanged.append(path)
                continue
            plan.changed.append(path)
        of = holders.get(content_hash, [])
        for image_id, held in of:
            if image_id not in plan.moved and (seen[held] != content_hash if held in seen else not exists(held)):
                plan.moved[image_id] = path
                break
        else:
            if of:
                image_id, held = of[0]
                plan.duplicates.append((path, plan.moved.get(image_id, held)))
            elif content_hash in taken:
                plan.duplicates.append((path, taken[content_hash]))
            else:
                taken[content_hash] = path
                plan.added.append((path, content_hash))
    plan.removed.extend(known[path][0] for path in plan.changed if known[path][0] not in plan.moved)
    return plan
