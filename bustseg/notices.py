"""What other libraries warn of and a user of bustseg need not read, each with the reason; everything else is shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO


class Expected(NamedTuple):
    """A warning that is not shown.

    Attributes:
        message: regular expression that its text begins with
        module: regular expression of the module that warns
        reason: why it asks for nothing
    """

    message: str
    module: str
    reason: str


EXPECTED = (
    Expected(
        r"For 'tu-' \(timm universal\) encoders, `encoder_weights`",
        r"segmentation_models_pytorch\b",
        "`imagenet` is what the configs say of every encoder; smp takes it for timm's own weights, which it is",
    ),
    Expected(
        r"The number of training batches \(\d+\) is smaller than the logging interval",
        r"lightning\b",
        "the loss within an epoch is not logged from small data sets; its mean over the epoch is",
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
        "so it is whenever a fit is continued",
    ),
    Expected(
        r"The '\w+' does not have many workers",
        r"lightning\b",
        "images come from memory, where more loader processes are slower; docs/results/training-speed.md has figures",
    ),
    Expected(
        r"The ``compute`` method of metric PixelCurves was called before",
        r"(torchmetrics|bustseg)\b",
        "a subset that `report.subsets` leaves out has no curve",
    ),
    Expected(
        r"IProgress not found",
        r"tqdm\b",
        "libraries that bring tqdm ask for its bars in a notebook; bustseg shows none of them",
    ),
)


@contextmanager
def one_line_each() -> Iterator[None]:
    """While it lasts, a warning is one line, without its place in the code, and expected ones are not shown."""

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
