"""The templates of this folder, and the signs that figures have in pages."""

from collections.abc import Callable
from pathlib import Path

import jinja2

MINUS, EN_DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def page_template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """Return a template in which every value is escaped and none may be missing.

    Args:
        name: A file of this folder.
        filters: {name: function} that it uses besides jinja2's own.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
