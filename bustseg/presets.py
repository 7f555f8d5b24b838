"""The presets (configs that ship): found by name from any folder, in a checkout and in an installed package."""

from __future__ import annotations

import difflib
from pathlib import Path

from bustseg.errors import UserError

FOLDER = "configs"

NOT_A_FIT = ("sweeps", "tables")
"""Folders whose files configure something other than one training."""


def folders() -> list[Path]:
    """The existing ``configs`` folders: of the working folder, of the checkout and of the package."""
    package = Path(__file__).resolve().parent
    found = (base / FOLDER for base in (Path(), package.parent, package))
    return list({folder.resolve(): folder for folder in found if folder.is_dir()}.values())


def presets() -> dict[str, Path]:
    """The presets' files by name (``baselines/unet_lite0``), in order; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def about(path: Path) -> str:
    """What a config says about itself: the comment in its first line."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def find_config(name: str | Path) -> Path:
    """The file of a config: the given file where it exists, else the preset of that name.

    Args:
        name: a file, or a name such as ``baselines/unet_lite0``, also with ``configs/`` before and ``.yaml`` after it

    Raises:
        UserError: neither a file nor a shipped config
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = presets()
    short = path.as_posix().removeprefix(f"{FOLDER}/").removesuffix(".yaml")
    if short in known:
        return known[short]
    close = difflib.get_close_matches(short, known, n=2, cutoff=0.6) or [one for one in known if short in one][:2]
    hint = f": did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"no config file at {name}{hint} (`bustseg configs` lists those that ship)")
