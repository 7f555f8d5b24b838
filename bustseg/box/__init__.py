"""The model in the box: what ``bustseg predict`` uses when no model is named.

An exported folder lies in ``model/`` beside this file (at most 15 MB, with its card); the wheel carries it.
"""

from __future__ import annotations

from pathlib import Path

from bustseg.errors import UserError

FOLDER = Path(__file__).parent / "model"


def boxed_model() -> Path:
    """Folder of the model that came with this version.

    Raises:
        UserError: this version came without one
    """
    if not FOLDER.is_dir() or not any(FOLDER.iterdir()):
        raise UserError("this version has no model in the box: name one with --model (a checkpoint, a run, `latest`)")
    return FOLDER
