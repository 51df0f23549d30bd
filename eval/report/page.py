"""The report as one HTML page that loads nothing from outside."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from eval.evaluate import Report
from eval.report.ladder import COLUMNS, ladder


def page(report: Report, plots: Sequence[str], thumbnails: dict[int, bytes]) -> str:
    """The page (`page.html`). plots: SVG elements; thumbnails: JPEG bytes by image id, for the examples.

    The template escapes all text but the plots, which are our own.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eval.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        report=report,
        plots=plots,
        columns=COLUMNS,
        ladder=ladder(report),
        thumbnails={image_id: base64.b64encode(jpeg).decode() for image_id, jpeg in thumbnails.items()},
    )
