"""Coverage-guided fuzzing of the readers that are written in Python: ``python -m tests.faults.fuzz READER SECONDS``.

It needs atheris, which no test needs otherwise: ``pip install atheris``. An error other than those that a user is told
in one line ends it with a traceback and the input that made it, as a file called ``crash-*``.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bustseg", "pydicom", "PIL", "torch._weights_only_unpickler"]):
    import pydicom  # noqa: F401
    from PIL import Image  # noqa: F401

    from bustseg.bounds import read_yaml
    from bustseg.data import dicom
    from bustseg.data.images import count_pages, image_size, read_native
    from bustseg.data.sources import read_table
    from bustseg.deploy.exported import ExportedModel
    from bustseg.errors import UserError

from tests.faults import hostile


def _dicom(path: Path) -> None:
    dicom.read_header(path)
    dicom.read_frame(path)


def _image(path: Path) -> None:
    image_size(path)
    if count_pages(path):
        read_native(path)


def _exported(path: Path) -> None:
    ExportedModel.read(path.parent)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "dicom": ("a.dcm", _dicom),
    "image": ("a.tif", _image),
    "config": ("a.yaml", read_yaml),
    "table": ("a.csv", lambda path: read_table(path, "the table")),
    "exported": ("bustseg.json", _exported),
}
"""Name of the file that each reads, and how"""


def seeds(reader: str) -> list[bytes]:
    """Whole and odd files to begin with."""
    images = {**hostile.whole_images(), **hostile.odd_images()}.values()
    if reader in ("dicom", "image"):
        return [content for suffix, content in images if (suffix == ".dcm") == (reader == "dicom")]
    if reader == "table":
        return [
            content for _, content in hostile.odd_tables("image,subset\na 1,train\nb 2,val\n") if len(content) < 10_000
        ]
    return [text.encode() for text in (*hostile.TEXTS.values(), '{"format_version": 1, "files": {}}')]


def main() -> None:
    """Fuzz one reader for a while; what it is given otherwise goes to libFuzzer."""
    reader, seconds, *more = sys.argv[1:]
    name, read = READERS[reader]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(seeds(reader)):
            (corpus / str(number)).write_bytes(content)
        path = Path(folder) / name

        def one(content: bytes) -> None:
            path.write_bytes(content)
            with contextlib.suppress(UserError):
                read(path)

        options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], *options, *more, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
