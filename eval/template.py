"""Pages from templates: one HTML file that holds all that it shows."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any


def page_of(package: str, thumbnails: Mapping[int, bytes], **shown: Any) -> str:
    """The page that a package's template `page.html` makes of what is shown; all text is escaped.

    thumbnails: JPEG bytes by image id, which the template has as base64.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    held = {image_id: base64.b64encode(jpeg).decode() for image_id, jpeg in thumbnails.items()}
    return environment.get_template("page.html").render(thumbnails=held, **shown)
