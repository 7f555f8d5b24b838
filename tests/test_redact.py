"""Credentials are taken out of whatever is printed or stored, and nothing else is."""

from __future__ import annotations

import time

import pytest

from bustseg.redact import redact, redact_nested


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/prefix", "http://user:***@host:5000/prefix"),
        ("https://:secret@host", "https://:***@host"),
        ("https://token@host/mlflow", "https://***@host/mlflow"),
        ("HTTP://token@host", "HTTP://***@host"),
        ("postgresql+psycopg://me:se%2Fcret@db:5432/runs", "postgresql+psycopg://me:***@db:5432/runs"),
        ("postgresql://me@db/runs", "postgresql://me@db/runs"),
        ("postgresql://me:se@cret@db/runs", "postgresql://me:***@db/runs"),
        ("postgresql://me:se/cret@db/runs", "postgresql://me:***@db/runs"),
        ("postgresql://me:s?e#cret@db/runs", "postgresql://me:***@db/runs"),
        ("mysql://db/runs?user=me&password=secret&ssl=1", "mysql://db/runs?user=me&password=***&ssl=1"),
        ("https://a.blob.net/x?sv=1&sig=ab%2Bc", "https://a.blob.net/x?sv=1&sig=***"),
        (
            "https://b.s3.com/k?X-Amz-Signature=ab&X-Amz-Credential=cd",
            "https://b.s3.com/k?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("connection to host=db user=me password=secret failed", "connection to host=db user=me password=*** failed"),
        ("tried 'http://a:b@c', 'http://d:e@f'", "tried 'http://a:***@c', 'http://d:***@f'"),
        ("postgresql://me:se cret@db/runs", "postgresql://me:***@db/runs"),
        ("cannot use postgresql://me:s'e\"c<r>et@db/runs: gone", "cannot use postgresql://me:***@db/runs: gone"),
        ("postgresql://me:12/34@db/runs", "postgresql://me:***@db/runs"),
        ("https://me:it's so@host/mlflow", "https://me:***@host/mlflow"),
        ("postgresql://db/runs?user=me&password=se;cr#et&ssl=1", "postgresql://db/runs?user=me&password=***&ssl=1"),
        ("host=db password='se cret' user=me", "host=db password=*** user=me"),
        (r"host=db password=se\ cret user=me", "host=db password=*** user=me"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("DRIVER={x};PWD=secret;UID=me", "DRIVER={x};PWD=***;UID=me"),
        ("redis://:secret@host\nsecond line", "redis://:***@host\nsecond line"),
    ],
)
def test_credentials_are_hidden_in_any_text(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/mlruns/mlflow.db",
        "http://127.0.0.1:5000/path@version",
        "databricks://profile",
        "http://127.0.0.1:5000 does not answer: write to me@example.org",
        "postgresql://db:5432/runs is away: write to me@example.org",
        '{"uri": "postgresql://db:5432/runs", "user": "me@example.org"}',
        '{"uri":"http://db:5000","user":"me@example.org"}',
        "https://host/experiments?monkey=1&tokens=2",
        "mail me@example.org: the key is in https://host/readme",
        "model.loss.init_args.gamma=2",
    ],
)
def test_what_holds_no_credentials_stays(text: str) -> None:
    assert redact(text) == text


def test_a_configuration_is_redacted_at_any_depth_and_left_as_it_is() -> None:
    config = {"tracking": {"uri": "http://u:p@h", "tags": None}, "list": ["http://u:p@h", 3], "pair": ("a", 1.5)}
    assert redact_nested(config) == {
        "tracking": {"uri": "http://u:***@h", "tags": None},
        "list": ["http://u:***@h", 3],
        "pair": ("a", 1.5),
    }
    assert config["tracking"]["uri"] == "http://u:p@h"  # type: ignore[index]


@pytest.mark.parametrize("piece", ["x", "x.", "a://b", "a://b:c", "key", "?a", "://", "a:b@"])
def test_long_texts_take_no_longer_than_their_length(piece: str) -> None:
    text = piece * (300_000 // len(piece))
    start = time.process_time()
    redact(f"{text} http://user:secret@host {text}")
    assert time.process_time() - start < 10


def test_a_credential_in_the_middle_of_a_long_text_is_hidden() -> None:
    assert redact(f"{'x' * 100_000} http://user:secret@host") == f"{'x' * 100_000} http://user:***@host"
