"""`bustseg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def predict(
    input: Annotated[list[str], Option(metavar="INPUT")],
    *,
    model: str | None = None,
    out: Annotated[Path, Option(metavar="DIR")],
    threshold: float | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    overlays: bool = True,
    probabilities: bool = False,
    dicom_seg: bool = False,
    smooth: Annotated[float, Option(metavar="SECONDS")] = 0.0,
    clip_format: str = "mp4",
    resume: Annotated[bool, Option(group="again")] = False,
    overwrite: Annotated[bool, Option(group="again")] = False,
    recursive: bool = True,
) -> int:
    """Outline lesions in any number of images of any size: masks, overlays and a table.

    Example:
        bustseg predict scans/ --out predictions

    Args:
        input: PNG, JPEG, TIFF, BMP or DICOM files, folders of them, quoted globs; videos (mp4, avi, mov, mkv, webm)
        model: checkpoint, MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS, latest, or an exported
            folder (default: the model in the box)
        out: folder to write to
        threshold: probability above which a pixel is lesion (default: the model's)
        batch_size: images per step of the network
        workers: number of reading threads, and of writing threads (default: by cores)
        overlays: write pictures with the outlines
        probabilities: also write probabilities (16-bit PNG, 65535 is 1)
        dicom_seg: write a DICOM SEG for each DICOM file; it contains the patient's identity
        smooth: for videos: seconds to average over (default 0)
        clip_format: format of outlined videos: mp4 (default), webm (plays in browsers) or avi
        resume: continue with the predictions in DIR (default)
        overwrite: replace the predictions in DIR
        recursive: search sub-folders
    """
    from bustseg.deploy.clips import ClipOptions, predict_all
    from bustseg.deploy.predict import Options

    options = Options(
        threshold=threshold,
        batch_size=batch_size,
        workers=workers,
        overlays=overlays,
        probabilities=probabilities,
        dicom_seg=dicom_seg,
        overwrite=overwrite,
        recursive=recursive,
    )
    return predict_all(input, model, out, options, ClipOptions(smooth, clip_format))
