"""``bustseg data fetch``: get BUSI from its authors' server or from a local archive, and unpack it safely."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bustseg.data.sources import BUSI
from bustseg.errors import DataError, brief, causes
from bustseg.progress import console, make_bar, on_screen, track
from bustseg.redact import redact

URL = "https://scholar.cu.edu.eg/Dataset_BUSI.zip"
SHA256 = "b2ce09f6063a31a73f628b6a6ee1245187cbaec225e93e563735691d68654de7"
"""Checksum of the authors' archive, 205,873,341 bytes."""
FOLDER = "Dataset_BUSI_with_GT"

_CLASSES = ("benign", "malignant", "normal")
_MOST_FILES = 20_000
_MOST_BYTES = 4 * 2**30  # most bytes once unpacked; BUSI has a quarter of a GiB
_MOST_RATIO = 100  # highest compression ratio; PNG files hardly compress at all
_SMALL = 2**20  # a file below this is harmless, whatever its ratio
_CHUNK = 2**14  # most bytes that a broken connection loses
_ELSEWHERE = "download the archive by hand (Kaggle has one) and give it with --archive"


def fetch_command(
    dest: Path, url: str = URL, archive: Path | None = None, sha256: str | None = None, pauses: float = 1.0
) -> int:
    """Put BUSI into ``dest/Dataset_BUSI_with_GT``, completely or not at all, and print the next step.

    Args:
        dest: folder, created if it does not exist
        url: address of the archive
        archive: a local ZIP file to use instead
        sha256: checksum of the archive; the authors' when ``url`` is used and none is given, ``none`` for no check
        pauses: seconds before the first retry when a connection breaks; doubles with each further retry

    Raises:
        DataError: no connection, a wrong checksum, or an archive that is unsafe or not BUSI
    """
    target = dest / FOLDER
    dest.mkdir(parents=True, exist_ok=True)
    with FileLock(dest / ".fetch.lock"):
        if target.is_dir():
            samples, _ = BUSI().scan(target)
            console.print(f"{len(samples)} images are in {escape(str(target))} already")
        else:
            wanted = sha256 or (SHA256 if archive is None else "none")
            known = None if wanted == "none" else wanted
            if archive is not None:
                _verify(archive, known)
                unpack(archive, target)
            else:
                fetched = download(url, dest, known, pauses)
                unpack(fetched, target)
                fetched.unlink()
            classes = Counter(sample.label for sample in BUSI().scan(target)[0])
            counts = ", ".join(f"{number} {label}" for label, number in classes.items())
            console.print(f"{sum(classes.values())} images ({counts}) in {escape(str(target))}")
    console.print(f"next: bustseg data check {escape(str(target))}")
    return 0


def download(url: str, folder: Path, sha256: str | None, pauses: float = 1.0) -> Path:
    """Download an archive into ``folder``; an interrupted download continues where it stopped, also in a later call.

    Raises:
        DataError: no connection, or a file with a wrong checksum (which is removed)
    """
    import pooch
    import requests

    if urlparse(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is not an http(s) address: give a file with --archive")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(f"{sha256!r} is not a SHA-256 checksum: give its 64 hex digits, or none")
    pooch.get_logger().setLevel(logging.WARNING)
    name = PurePosixPath(urlparse(url).path).name or "archive.zip"
    known = None if sha256 is None else f"sha256:{sha256}"
    try:
        return Path(pooch.retrieve(url, known, fname=name, path=folder, downloader=ResumingDownloader(pauses)))
    except ValueError as error:
        raise DataError(
            f"{url} does not have the checksum {sha256}: it is damaged or another file (removed); try again, "
            f"{_ELSEWHERE}, or give the right checksum with --sha256"
        ) from error
    except requests.RequestException as error:
        raise DataError(
            f"cannot download {url} ({_reason(error)}): try again to continue where it stopped, or {_ELSEWHERE}"
        ) from error


def _reason(error: Exception) -> str:
    """Why a download failed, in a few words: requests' messages name its objects and repeat the address."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    named = [cause.strerror for cause in causes(error) if isinstance(cause, OSError) and cause.strerror]
    return f"no connection: {named[-1]}" if named else brief(error)[:160]


class ResumingDownloader:
    """Downloader for pooch that requests the rest (HTTP Range) when a connection breaks.

    The received part is kept in ``<url's file name>.part`` next to pooch's temporary file, with the server's ETag, so
    that a later process can continue with it if the server's file is still the same.

    Args:
        pauses: seconds before the first retry; doubles each time
        attempts: how many times in a row nothing may arrive
    """

    def __init__(self, pauses: float = 1.0, attempts: int = 5) -> None:
        self.pauses, self.attempts = pauses, attempts

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        import requests

        part = Path(output_file).parent / ((PurePosixPath(urlparse(url).path).name or "archive.zip") + ".part")
        with (
            on_screen(
                make_bar(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    DownloadColumn(),
                    TransferSpeedColumn(),
                    TimeRemainingColumn(),
                )
            ) as progress,
            requests.Session() as session,
        ):
            bar = progress.add_task("downloading", total=None)
            failures = 0
            while True:
                before = _size(part)
                try:
                    if self._receive(session, url, part, partial(progress.update, bar)):
                        break
                    error: Exception = requests.ConnectionError("the connection ended early")
                except requests.HTTPError:
                    raise  # the server has answered: a retry does not help
                except requests.RequestException as problem:
                    error = problem
                failures = 0 if _size(part) > before else failures + 1
                if failures >= self.attempts:
                    raise error
                attempt = f"no connection, attempt {failures + 1} of {self.attempts}" if failures else "downloading"
                progress.update(bar, description=attempt)
                time.sleep(min(self.pauses * 2**failures, 60))
        os.replace(part, output_file)
        _origin(part).unlink(missing_ok=True)

    def _receive(self, session: Any, url: str, part: Path, progress: Any) -> bool:
        """One request; True when the file is complete."""
        start = _size(part)
        origin = {}
        with contextlib.suppress(OSError, ValueError):
            origin = json.loads(_origin(part).read_text())
        if start and origin.get("url") != redact(url):
            start = 0
        # with transport compression the byte positions would not be the file's
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if origin.get("version"):
                headers["If-Range"] = origin["version"]
        with session.get(url, headers=headers, stream=True, timeout=(15, 60)) as response:
            if response.status_code == 416:  # nothing is left to send, or the file has changed
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return True
                part.unlink(missing_ok=True)
                return False
            response.raise_for_status()
            resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            )
            done = start if resumed else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length is not None else None
            if total is not None and total > _MOST_BYTES:
                raise DataError(f"{url} would send {total / 2**30:.0f} GiB: it is not BUSI")
            # only a strong ETag (or a date) proves that the rest belongs to the received part
            tag = response.headers.get("ETag", "")
            version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
            _origin(part).write_text(json.dumps({"url": redact(url), "version": version}))
            with part.open("ab" if resumed else "wb") as file:
                progress(completed=done, total=total)
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    progress(completed=done, total=total)
                    if done > _MOST_BYTES:
                        raise DataError(f"{url} sends more than {_MOST_BYTES / 2**30:.0f} GiB: it is not BUSI")
        return total is None or done >= total


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _verify(archive: Path, sha256: str | None) -> None:
    import pooch

    if not archive.is_file():
        raise DataError(f"no archive at {archive}")
    if sha256 is not None and pooch.file_hash(str(archive)) != sha256.lower():
        raise DataError(f"{archive} does not have the checksum {sha256}: download it again")


def unpack(archive: Path, target: Path) -> None:
    """Unpack the images and masks of a BUSI archive to ``target/{benign,malignant,normal}``, completely or not at all.

    The three class folders may lie at any depth. Nothing else is unpacked.

    Raises:
        DataError: not a ZIP file, damaged, unsafe (paths that lead out, links, bombs), or not BUSI
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(file, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
            try:
                _extract(file, members, temporary, archive)
                BUSI().scan(temporary)
                temporary.chmod(0o755)
                temporary.rename(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise DataError(f"{archive} is not a readable ZIP archive ({error}): download it again") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The members to unpack, by path under the target; refuses an archive with any unsafe member."""
    infos = archive.infolist()
    if len(infos) > _MOST_FILES:
        raise DataError(f"{path} holds {len(infos)} files: it is not BUSI")
    total = 0
    found: dict[PurePosixPath, dict[PurePosixPath, zipfile.ZipInfo]] = {}
    for info in infos:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or (name.parts and ":" in name.parts[0]) or "\0" in info.filename:
            raise DataError(f"{path} is unsafe: {info.filename!r} would be written outside the folder")
        mode = info.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
            raise DataError(f"{path} is unsafe: {info.filename!r} is a link or device")
        total += info.file_size
        if total > _MOST_BYTES or (info.file_size > _SMALL and info.file_size > _MOST_RATIO * info.compress_size):
            raise DataError(f"{path} is unsafe: {info.filename!r} would unpack to far more than it holds")
        wanted = name.suffix.lower() == ".png" and not name.name.startswith(".") and "__MACOSX" not in name.parts
        if info.is_dir() or not wanted or len(name.parts) < 2 or name.parts[-2] not in _CLASSES:
            continue
        inner = PurePosixPath(*name.parts[-2:])
        own = found.setdefault(PurePosixPath(*name.parts[:-2]), {})
        if inner in own:
            raise DataError(f"{path} holds {inner} twice: download it again")
        own[inner] = info
    if not found:
        raise DataError(f"{path} holds none of the folders benign, malignant, normal: it is not BUSI")
    if len(found) > 1:
        places = ", ".join(sorted(str(place) for place in found))
        raise DataError(f"{path} holds several data sets ({places}): unpack the right one by hand")
    return next(iter(found.values()))


def _extract(archive: zipfile.ZipFile, members: dict[PurePosixPath, zipfile.ZipInfo], folder: Path, path: Path) -> None:
    for inner, info in track(members.items(), "unpacking", len(members)):
        destination = folder / inner
        destination.parent.mkdir(exist_ok=True)
        left = info.file_size
        with archive.open(info) as packed, destination.open("xb") as file:
            while chunk := packed.read(_CHUNK):
                left -= len(chunk)
                if left < 0:  # the archive's directory gives a wrong size
                    raise DataError(f"{path} is unsafe: {info.filename!r} unpacks to more than it says")
                file.write(chunk)
