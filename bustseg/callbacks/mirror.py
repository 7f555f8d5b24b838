"""Shows a run's files in other loggers, in the way that each of them supports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from bustseg.progress import error_console
from bustseg.runs.run import Shown
from bustseg.runs.store import one_line

PICTURES, TABLES = (".png", ".jpg"), (".csv",)
MOST_ROWS = 500
"""Most rows of a table that TensorBoard gets, which shows it as text."""


def show_in(logger: Logger) -> Shown | None:
    """A function that shows a run's files in a logger: pictures and tables in TensorBoard and W&B, all files in MLflow.

    Returns:
        a function of a file and its name in the run; None for loggers that cannot hold files
    """
    kinds: dict[type, Callable[[Any, Path, str], None]]
    kinds = {TensorBoardLogger: _in_tensorboard, WandbLogger: _in_wandb, MLFlowLogger: _in_mlflow}
    show = next((show for kind, show in kinds.items() if isinstance(logger, kind)), None)
    if show is None:
        return None

    def shown(path: Path, name: str) -> None:
        try:
            show(logger, path, name)
        except Exception as error:  # the file itself is in the run's folder
            error_console.print(
                f"[yellow]warning:[/] {type(logger).__name__} does not accept {name}: {one_line(error)}",
                highlight=False,
            )

    return shown


def _in_tensorboard(logger: TensorBoardLogger, path: Path, name: str) -> None:
    import numpy as np
    import pandas as pd
    from PIL import Image

    if path.suffix in PICTURES:
        with Image.open(path) as image:
            logger.experiment.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
    elif path.suffix in TABLES:
        table = pd.read_csv(path, nrows=MOST_ROWS)
        header = [" | ".join(map(str, table.columns)), " | ".join("---" for _ in table.columns)]
        rows = [" | ".join(map(str, row)) for row in table.itertuples(index=False)]
        logger.experiment.add_text(name, "\n".join([*header, *rows]))
    elif path.suffix in (".md", ".yaml"):
        text = path.read_text(encoding="utf-8")
        logger.experiment.add_text(name, text if path.suffix == ".md" else f"```\n{text}\n```")


def _in_wandb(logger: WandbLogger, path: Path, name: str) -> None:
    import pandas as pd

    if path.suffix in PICTURES:
        logger.log_image(key=name, images=[str(path)])
    elif path.suffix in TABLES:
        logger.log_table(key=name, dataframe=pd.read_csv(path))


def _in_mlflow(logger: MLFlowLogger, path: Path, name: str) -> None:
    logger.experiment.log_artifact(logger.run_id, str(path), str(Path(name).parent) if "/" in name else None)
