"""`bustseg data fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def fetch(
    dest: Path,
    *,
    url: Annotated[str | None, Option(group="origin")] = None,
    archive: Annotated[Path | None, Option(group="origin", metavar="ZIP")] = None,
    sha256: Annotated[str | None, Option(metavar="HEX")] = None,
) -> int:
    """Download BUSI from its authors (206 MB; resumes where it stopped), or unpack an archive of it.

    Example:
        bustseg data fetch data

    Args:
        dest: folder for Dataset_BUSI_with_GT
        url: another address of the archive
        archive: a local archive, such as Kaggle's
        sha256: the archive's checksum; `none` for no check (default: the authors' with a URL)
    """
    from bustseg.data.fetch import URL, fetch_command

    return fetch_command(dest, url or URL, archive, sha256)
