"""What every HTML page of the project stands on: one head, one style sheet, one way to fill a template and to show
a film.

A page is a template that extends base.html and fills its blocks `title` and `body`, and `style` where it needs rules of
its own behind those of page.css. It loads nothing from elsewhere and runs nothing, and every text is escaped.
"""

import base64
import io
import os
from pathlib import Path

import jinja2
from PIL import Image


def environment(folder: Path) -> jinja2.Environment:
    """The Jinja environment for the templates of `folder` and those here; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def film_uri(path: str | os.PathLike[str], side: int, kind: str, **options: object) -> str:
    """A film that can be decoded, as a data: URI: grey, shrunk to at most `side` pixels an edge.

    Args:
        kind: "PNG" or "JPEG"; options: what Pillow's `save` takes for it.
    """
    with Image.open(path) as film:
        film = film.convert("L")
        film.thumbnail((side, side))
        buffer = io.BytesIO()
        film.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
