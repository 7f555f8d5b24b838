"""What MkDocs runs while it builds the site."""

from __future__ import annotations

import re

# docstrings name things as Sphinx does (:class:`bustseg.Predictor`); the site shows the name as code
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code[^>]*>)~?")


def on_page_content(html: str, **_: object) -> str:
    """Take Sphinx's roles from in front of names that are code already."""
    return _ROLE.sub(r"\1", html)
