"""The model in the box: the model that comes with bustseg, which ``bustseg predict`` uses by default.

It is an exported folder in ``model/`` next to this file (at most 15 MB, with its card), included in the wheel.
"""

from __future__ import annotations

from pathlib import Path

from bustseg.errors import UserError

FOLDER = Path(__file__).parent / "model"


def boxed_model() -> Path:
    """Folder of the model that comes with this version.

    Raises:
        UserError: this version has none
    """
    if not FOLDER.is_dir() or not any(FOLDER.iterdir()):
        raise UserError("this version has no model in the box: name one with --model (a checkpoint, a run, `latest`)")
    return FOLDER
