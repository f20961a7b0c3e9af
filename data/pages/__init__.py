"""What every HTML page of the project stands on: one head, one style sheet, one way to fill a template.

A page is a template that extends base.html and fills its blocks `title` and `body`, and `style` where it needs rules of
its own behind those of page.css. It loads nothing from elsewhere and runs nothing, and every text is escaped.
"""

from pathlib import Path

import jinja2


def environment(folder: Path) -> jinja2.Environment:
    """The Jinja environment for the templates of `folder` and those here; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
