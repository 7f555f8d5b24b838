"""Decode once: every image and mask of a source as one ``uint8`` array each, kept on disk and keyed by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import platformdirs
import psutil
from filelock import FileLock

from bustseg import bounds
from bustseg.data.duplicates import THRESHOLD, duplicate_groups
from bustseg.data.facts import NEARLY_ALL, Facts, unusable
from bustseg.data.mask_files import HALF
from bustseg.data.sources import Sample
from bustseg.errors import DataError
from bustseg.framing import Framing
from bustseg.progress import tell_once, track
from bustseg.whole import write_whole

CACHE_VERSION = 2
"""Increased when the decoding below or the resizing changes, so that old caches are rebuilt."""


GROUPS_VERSION = 1
"""Increased when the search for duplicates changes."""


@dataclass(frozen=True)
class ImageCache:
    """Decoded samples, in the order of the list that :func:`load_cache` was given.

    Attributes:
        images: grey images, ``uint8`` of shape (N, H, W)
        masks: masks, ``uint8`` 0 or 1 of shape (N, H, W)
        digest: the data's digest (see :func:`data_digest`)
    """

    images: np.ndarray
    masks: np.ndarray
    digest: str


def cache_root(data_root: Path) -> Path:
    """Folder for caches: ``$BUSTSEG_CACHE``, else next to the data, else (read-only data) the user's cache folder."""
    if configured := os.environ.get("BUSTSEG_CACHE"):
        return Path(configured).expanduser()
    beside = data_root.resolve().parent / ".bustseg_cache"
    try:
        beside.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=beside):
            return beside
    except OSError:
        return Path(platformdirs.user_cache_dir("bustseg"))


def data_digest(samples: Sequence[Sample]) -> str:
    """Digest of the samples' content (ids, labels and the bytes of every file): 16 hex digits.

    Raises:
        DataError: a file cannot be read
    """
    total = hashlib.sha256()
    # a file with many frames is read only once
    paths = list(dict.fromkeys(path for sample in samples for path in (sample.image, *sample.masks)))
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(paths, pool.map(_file_digest, paths), strict=True))
    for sample in samples:
        total.update(f"{sample.source}/{sample.id}/{sample.label}/{len(sample.masks)}".encode())
        reading = (sample.frame, sample.box, sample.lesion_above)
        if reading != (0, None, HALF):
            total.update(repr(reading).encode())
        for path in (sample.image, *sample.masks):
            total.update(digests[path])
    return total.hexdigest()[:16]


def _file_digest(path: Path) -> bytes:
    try:
        bounds.check_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def cached_groups(
    samples: Sequence[Sample], root: Path, threshold: float = THRESHOLD, digest: str | None = None
) -> Mapping[str, str]:
    """:func:`bustseg.data.duplicates.duplicate_groups`, cached by the content of the data.

    Args:
        root: folder for caches
        digest: the data's digest if it is already known

    Raises:
        DataError: an image cannot be read
    """
    path = root / f"groups-v{GROUPS_VERSION}-{digest or data_digest(samples)}-{threshold:g}.json"
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{path.name}.lock"):
            if not path.is_file():
                write_whole(path, json.dumps(dict(duplicate_groups(samples, threshold))).encode())
    return json.loads(path.read_text())


def decode(sample: Sample, framing: Framing) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a sample as the network's input (h, w), both ``uint8``; the mask is 0 or 1.

    The mask is averaged over areas, so that thin structures do not depend on the sampling points, and thresholded at
    half.

    Raises:
        DataError: a file cannot be decoded, a mask and its image differ in size, or its levels cannot be right
    """
    image, mask, _ = _decode(sample, framing)
    return image, mask


def _decode(sample: Sample, framing: Framing) -> tuple[np.ndarray, np.ndarray, Facts]:
    image = sample.read_image()
    with bounds.room_for(image.size):
        mask = sample.read_mask(image.shape[:2]).astype(np.uint8)
        coverage = framing.fit(mask.astype(np.float32))
        return framing.fit(image), (coverage >= 0.5).astype(np.uint8), Facts.of(image, mask)


def load_cache(samples: Sequence[Sample], framing: Framing, root: Path) -> ImageCache:
    """Decoded samples as the network's input, from the cache under ``root``, or decoded now and stored there.

    The cache is keyed by the content of the files, so a changed file gives a new cache. If two processes need it at
    once, the second waits for the first. A cache is never incomplete, since its folder is created by a rename.

    Raises:
        DataError: files that cannot be used (the first is named, the others counted), or a data set that must not be
            trained on, see :func:`bustseg.data.facts.unusable`
    """
    digest = data_digest(samples)
    size = framing.size
    kind = "" if framing.resize == "stretch" else f"-{framing.resize}"
    folder = root / f"v{CACHE_VERSION}-{digest}-{size[0]}x{size[1]}{kind}"
    if not (folder / "meta.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):
            if not (folder / "meta.json").is_file():
                _build(samples, framing, folder, digest)
    meta = json.loads((folder / "meta.json").read_text())
    facts = [Facts(**one) for one in meta["facts"]]
    _refuse([problem.message for problem in unusable(samples, facts)])
    _look_for_lost_lesions(sum(fact.lesion > 0 for fact in facts), meta["lesions"], size)
    return ImageCache(
        np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "masks.npy", mmap_mode="r"), digest
    )


def _look_for_lost_lesions(drawn: int, kept: int, size: tuple[int, int]) -> None:
    """Report how many lesions vanish at the network's input size, so that their images count as normal."""
    lost = drawn - kept
    words = f"{lost} of {drawn} lesions vanish at {size[1]}x{size[0]}"
    if lost and lost >= NEARLY_ALL * drawn:
        raise DataError(f"{words}: raise data.image_size")
    if lost:
        tell_once(f"{words}, so that their images count as images without a lesion: raise data.image_size")


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more: `bustseg data check` lists all)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _check_room(number: int, size: tuple[int, int], root: Path) -> None:
    """Refuse a cache that does not fit into memory and disk.

    Raises:
        DataError: it does not fit
    """
    needed = 2 * number * size[0] * size[1]
    room = min(psutil.virtual_memory().available, shutil.disk_usage(root).free)
    if needed > room:
        raise DataError(
            f"{number} images and masks of {size[1]}x{size[0]} take {needed / 2**30:,.1f} GiB, and {room / 2**30:,.1f} "
            "GiB of memory and disk are free: lower data.image_size, or set BUSTSEG_CACHE to a larger disk"
        )


def _build(samples: Sequence[Sample], framing: Framing, folder: Path, digest: str) -> None:
    size = framing.size
    _check_room(len(samples), size, folder.parent)
    images = np.empty((len(samples), *size), dtype=np.uint8)
    masks = np.empty_like(images)
    facts: list[Facts | None] = [None] * len(samples)
    problems: list[str] = []

    def fill(index: int) -> str | None:
        try:
            images[index], masks[index], facts[index] = _decode(samples[index], framing)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(fill, range(len(samples)))
        for problem in track(results, f"decoding to {size[1]}x{size[0]}", total=len(samples)):
            if problem:
                problems.append(problem)
    _refuse(problems)

    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        np.save(temporary / "images.npy", images)
        np.save(temporary / "masks.npy", masks)
        meta = {
            "version": CACHE_VERSION,
            "digest": digest,
            "size": list(size),
            "resize": framing.resize,
            "ids": [sample.id for sample in samples],
            "lesions": int(masks.any(axis=(1, 2)).sum()),
            "facts": [asdict(fact) for fact in facts if fact is not None],
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
