"""Coverage-guided fuzzing of the readers that are written in Python: ``python -m tests.faults.fuzz READER SECONDS``.

It needs atheris, which no test needs otherwise: ``pip install atheris``. An error other than those that a user is told
in one line ends it with a traceback and the input that made it, as a file called ``crash-*``.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["bustseg", "pydicom", "PIL", "torch._weights_only_unpickler"]):
    import pydicom  # noqa: F401
    from PIL import Image  # noqa: F401

    from bustseg.bounds import read_yaml
    from bustseg.box import boxed_model
    from bustseg.data import dicom
    from bustseg.data.images import count_pages, image_size, read_native
    from bustseg.data.sources import read_table
    from bustseg.deploy.confidence import CALIBRATION, TRAINING_IMAGES, Calibration, ImageRange
    from bustseg.deploy.exported import METADATA, ExportedModel, sha256
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
    model = ExportedModel.read(path.parent)
    calibration = Calibration.from_dict(model.metadata.get(CALIBRATION))
    images = ImageRange.from_dict(model.metadata.get(TRAINING_IMAGES))
    assert all((model.path, model.image_size, model.mask_rule, images)), calibration


def _exported_seed(folder: Path) -> bytes:
    """The model in the box with other files, which are written into ``folder``: they are read again each time."""
    metadata = json.loads((boxed_model() / METADATA).read_text())
    for name in metadata["files"]:
        (folder / name).write_bytes(b"x")
        metadata["files"][name] = {"bytes": 1, "sha256": sha256(folder / name)}
    return json.dumps(metadata).encode()


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
    return [text.encode() for text in hostile.TEXTS.values()]


ODD_VALUES = (None, True, 0, -1, 1e308, float("nan"), 10**30, "", "../a", "a/b", "nan", "\n", [], {}, [[0, 1]])


def changed_json(content: bytes, max_size: int, seed: int) -> bytes:
    """JSON with one value or name changed or left out, since a change of letters mostly makes text that is no JSON."""
    draw = random.Random(seed)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return atheris.Mutate(content, max_size)
    places = list(_places(document))
    if not places or draw.random() < 0.2:
        return atheris.Mutate(content, max_size)
    holder, key = draw.choice(places)
    change = draw.randrange(4)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[str(draw.choice(ODD_VALUES))] = holder.pop(key)
    elif change == 2:
        holder[key] = draw.choice(draw.choice(places)[:1])
    else:
        holder[key] = draw.choice(ODD_VALUES)
    try:
        return json.dumps(document).encode()[:max_size]
    except (ValueError, RecursionError):  # it holds itself
        return content


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within a document, with each of its keys or positions."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


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
        if reader == "exported":
            (corpus / "whole").write_bytes(_exported_seed(path.parent))

        def one(content: bytes) -> None:
            path.write_bytes(content)
            with contextlib.suppress(UserError):
                read(path)

        options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=4096"]
        changing = {"custom_mutator": changed_json} if reader == "exported" else {}
        atheris.Setup([sys.argv[0], *options, *more, str(corpus)], one, **changing)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
