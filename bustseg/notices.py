"""Warnings of other libraries that are hidden from users of bustseg, each with the reason; all others are shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO


class Expected(NamedTuple):
    """A warning that is hidden.

    Attributes:
        message: regular expression that the beginning of its text matches
        module: regular expression of the module that warns
        reason: why the user need not act on it
    """

    message: str
    module: str
    reason: str


EXPECTED = (
    Expected(
        r"For 'tu-' \(timm universal\) encoders, `encoder_weights`",
        r"segmentation_models_pytorch\b",
        "the configs say `imagenet` for every encoder, and smp rightly takes it for timm's weights",
    ),
    Expected(
        r"The number of training batches \(\d+\) is smaller than the logging interval",
        r"lightning\b",
        "small data sets have too few batches to log the loss within an epoch; its mean over the epoch is logged",
    ),
    Expected(
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"lightning\b",
        "Lightning's own use of torch",
    ),
    Expected(
        r"The ``noload`` loader strategy is deprecated",
        r"mlflow\b|sqlalchemy\b",
        "MLflow's own use of SQLAlchemy",
    ),
    Expected(
        r"Checkpoint directory .* exists and is not empty",
        r"lightning\b",
        "this is so whenever a fit is continued",
    ),
    Expected(
        r"The '\w+' does not have many workers",
        r"lightning\b",
        "images are in memory, and more loader processes would be slower; see docs/results/training-speed.md",
    ),
    Expected(
        r"The ``compute`` method of metric PixelCurves was called before",
        r"(torchmetrics|bustseg)\b",
        "a subset that `report.subsets` leaves out has no curve",
    ),
    Expected(
        r"IProgress not found",
        r"tqdm\b",
        "libraries that use tqdm request its notebook bars; bustseg shows none of them",
    ),
)


@contextmanager
def one_line_each() -> Iterator[None]:
    """Context in which a warning is one line, without its place in the code, and expected ones are hidden."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        from bustseg.progress import warn

        warn(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        for expected in EXPECTED:
            warnings.filterwarnings("ignore", message=expected.message, module=expected.module)
        warnings.showwarning = show
        yield
