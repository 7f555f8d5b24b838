"""Remove credentials from everything that is printed or stored; this is the only place that does so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""Replaces a credential."""

# bounded, or a long text without spaces would take quadratic time
_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40}://)"
_AUTHORITY = re.compile(_SCHEME + r"(?P<userinfo>[^/?#\s'\"<>]{0,300})@")
"""A URI with user information, greedy up to the last ``@`` of its authority, since a password may contain one."""

_UNQUOTED = re.compile(_SCHEME + r"(?P<userinfo>[^:/?#@\s'\"<>]{1,300}:(?!\d+[/?#])[^@\s'\"<>]{0,300})@")
"""The same with a ``/``, ``?`` or ``#`` in the password, which SQLAlchemy's parser allows."""

_NO_PORT = r"(?!\d{1,5}(?:/[^@\s'\"]*)?(?:[\s'\"<>,;)\]}]|$))"
_ODD = re.compile(
    r"(?P<scheme>\b(?:postgres(?:ql)?|mysql|mariadb|mssql|oracle|redis)(?:\+\w{1,20})?://)"
    rf"(?P<userinfo>[^:/?#@\s]{{0,100}}:{_NO_PORT}(?:(?!://)[^@\n]){{0,300}})@"
    rf"|(?P<web>\bhttps?://)(?P<login>[^:/?#@\s]{{0,100}}:{_NO_PORT}(?:(?!://)[^@/?#\n]){{0,300}})@",
    re.IGNORECASE,
)
"""Passwords with blanks, quotes and brackets, which databases' drivers and MLflow's client take as they are. What is a
port, and no password, ends at one of these or with a path."""

_WORD = re.compile(r"[^\s'\"<>]+")
"""What may be a URI: neither pattern above matches beyond one of these characters."""

_PARAMETER = re.compile(
    r"(?P<name>(?:^|(?<=[?&;\s]))"
    r"(?:[\w.-]*(?:pass(?:word|wd|phrase)?|pwd|secret|token|signature|credential|apikey|accountkey|odbc_connect)"
    r"|(?:[\w.-]*[_.-])?(?:key|sig))=)"
    # quoted as libpq has it; else a mark that goes on with a further name, or ends the text, is no part of it
    r"(?:'(?:[^'\\\n]|\\.){0,300}'|(?:[^&;\s'\"<>\\]|\\.|;(?!\s*(?:[\w ]{1,40}=|\s|$)))+)",
    re.IGNORECASE,
)
"""A parameter of a query or of a libpq connection string that holds a secret (``password=``, ``sig=``, ...)."""


def redact(text: str) -> str:
    """A text, such as a URI or an error message, with the credentials of every URI in it replaced by ``***``.

    A user name before a password is kept, as in SQLAlchemy; a name alone before the host of a web address may be a
    token and is replaced.

    >>> redact("postgresql://me:secret@db/runs and https://token@host/mlflow?sig=abc")
    'postgresql://me:***@db/runs and https://***@host/mlflow?sig=***'
    """
    if "@" in text and "://" in text:
        text = _WORD.sub(lambda found: _without_userinfos(found[0]), text)
        text = _ODD.sub(_without_odd_userinfo, text)
    return _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)


def redact_nested(value: Any) -> Any:
    """A redacted copy of a configuration or other nested value.

    Args:
        value: mappings, lists and tuples of plain values, nested to any depth
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_nested(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_nested(item) for item in value)
    return value


def _without_userinfos(word: str) -> str:
    if "@" not in word or "://" not in word:
        return word
    return _UNQUOTED.sub(_without_userinfo, _AUTHORITY.sub(_without_userinfo, word))


def _without_odd_userinfo(found: re.Match[str]) -> str:
    scheme, userinfo = found["scheme"] or found["web"], found["userinfo"] or found["login"]
    return f"{scheme}{userinfo.partition(':')[0]}:{HIDDEN}@"


def _without_userinfo(found: re.Match[str]) -> str:
    scheme, (user, colon, _) = found["scheme"], found["userinfo"].partition(":")
    if colon:
        return f"{scheme}{user}:{HIDDEN}@"
    return f"{scheme}{HIDDEN}@" if scheme.lower() in ("http://", "https://") else found[0]
