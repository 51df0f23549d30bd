"""What a text tower does not read of a long text: it is told, whoever asked."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from training.errors import CutTextWarning

SHOWN = 3  # texts that a warning names


def left_out_of(text: str, tokenizer: Any, most: int) -> str:
    """The end of a text beyond the `most` tokens that are read, "" where all are. tokenizer: one of transformers'."""
    if is_short(text, most):
        return ""
    with_places = bool(tokenizer.is_fast)
    found = tokenizer(
        text, truncation=False, verbose=False, return_special_tokens_mask=True, return_offsets_mapping=with_places
    )
    content = [i for i, special in enumerate(found["special_tokens_mask"]) if not special]
    room = most - tokenizer.num_special_tokens_to_add()
    if len(content) <= room:
        return ""
    first = content[room]
    if with_places:
        return text[found["offset_mapping"][first][0] :].strip()
    return tokenizer.decode(found["input_ids"][first:], skip_special_tokens=True).strip()


def is_short(text: str, most: int) -> bool:
    """True where a text is so short that it is read whole: a token is no less than a byte, and two may be added."""
    return len(unicodedata.normalize("NFKC", text).encode("utf-8", "replace")) + 2 < most


def warn_of_cut(texts: Sequence[str], left_out: Callable[[str], str], most: int) -> None:
    """Warns, once for all of the texts, of those that are longer than the `most` tokens that a tower reads."""
    cut = {t: end for t in dict.fromkeys(texts) if (end := left_out(t))}
    if not cut:
        return
    said = ", ".join(f"{_short(end)!r} of {_short(text)!r}" for text, end in list(cut.items())[:SHOWN])
    more = f", and the ends of {len(cut) - SHOWN} more" if len(cut) > SHOWN else ""
    warnings.warn(f"a text is read up to {most} tokens; left out: {said}{more}", CutTextWarning, stacklevel=3)


def same_when_cut(
    names: Sequence[str], prompts: Callable[[str], Sequence[str]], left_out: Callable[[str], str]
) -> None:
    """Warns of names, all different, whose prompts differ only in what is left out of them."""
    read: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        made = prompts(name)
        ends = [left_out(prompt) for prompt in made]
        if any(ends):
            key = tuple(p.rstrip().removesuffix(end) if end else p for p, end in zip(made, ends, strict=True))
            read.setdefault(key, []).append(name)
    same = [found for found in read.values() if len(found) > 1]
    if same:
        said = "; ".join(" = ".join(repr(_short(name)) for name in found[:SHOWN]) for found in same[:SHOWN])
        more = f"; and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
        warnings.warn(f"the same as far as they are read: {said}{more}", CutTextWarning, stacklevel=3)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-(most // 2) :]}"
