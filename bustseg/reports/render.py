"""Pages and cards from the templates in ``templates/``."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bustseg.disclaimer import RESEARCH


@cache
def environment() -> Environment:
    """Jinja's environment: values in HTML are escaped, and an undefined name is an error."""
    made = Environment(
        loader=PackageLoader("bustseg.reports"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals["research"] = RESEARCH  # every page shows it
    return made


def render(template: str, **values: Any) -> str:
    """Text of a template, such as ``compare.html.j2``.

    Args:
        template: file in ``templates/``
        values: values of its variables
    """
    return environment().get_template(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a picture as a data URI.

    Args:
        content: the file's bytes
        kind: such as ``image/png``
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return data_uri(path.read_bytes(), "image/png")
