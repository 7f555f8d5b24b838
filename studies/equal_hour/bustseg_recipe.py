"""bustseg's flagship recipe for BUSI, as it ships: ``bustseg fit``, then the threshold of the validation images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow

import bustseg
from bustseg.data.sources import Folders
from studies.equal_hour import common

CONFIG = Path(bustseg.__file__).parents[1] / "configs" / "flagship" / "grouped.yaml"


def main() -> None:
    """Train the recipe; a training that does not finish within the hour is stopped."""
    args = common.arguments(__doc__)
    os.chdir(args.out)
    links = args.out / "busi"
    _link(args.data, links)
    left = int(args.seconds - common.elapsed())
    options = {
        "data.source": {"class_path": f"{Folders.__module__}.Folders", "init_args": {"labels": "labels.csv"}},
        "data.root": str(links),
        "data.split": str(links / "split.csv"),
        "data.num_workers": 0,
        "trainer.max_time": {"seconds": left},
        "trainer.enable_progress_bar": False,
        "tracking.uri": f"sqlite:///{args.out}/mlflow.db",
    }
    extra = json.loads(os.environ.get("EQUAL_HOUR_OPTIONS", "{}"))  # for the study's test, which has no hour
    run = bustseg.fit(str(CONFIG), {**options, **extra})
    trained = common.elapsed()
    client = mlflow.MlflowClient(f"sqlite:///{args.out}/mlflow.db")
    history = client.get_metric_history(str(run.run_id), "val/dice_lesion")
    curve = common.Curve(args.out)
    for point in history:
        curve.add(point.value, point.timestamp / 1000 - common.STARTED)
    predictor = bustseg.Predictor(str(run.checkpoint))
    found = {"epochs": len(history), "seconds": round(trained, 1)}
    common.finish(args.out, args.data, lambda image: predictor(image).mask, **found)


def _link(data: Path, links: Path) -> None:
    """One folder of images and one of masks, with files for the split and the classes."""
    rows, labels = ["image,subset"], ["image,label"]
    for kind in ("images", "masks"):
        (links / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((data / kind).glob("*/*.png")):
            target = links / kind / path.name
            if not target.is_symlink():
                target.symlink_to(path.resolve())
            if kind == "images":
                rows.append(f"{path.stem},{path.parent.name}")
                labels.append(f"{path.stem},{path.stem.split()[0]}")
    (links / "split.csv").write_text("\n".join(rows) + "\n")
    (links / "labels.csv").write_text("\n".join(labels) + "\n")


if __name__ == "__main__":
    main()
