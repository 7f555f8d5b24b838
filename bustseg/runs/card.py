"""The model card: a model's training data, recipe, scores and limits of use.

Every number comes from the run's record in MLflow. The structure follows Mitchell et al. (2019), "Model cards for model
reporting", https://doi.org/10.1145/3287560.3287596.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bustseg.data.sources import LABELS
from bustseg.metrics import CONVENTIONS, EMPTY_MASK, overlap_metrics
from bustseg.metrics.registry import score, single_scores, value_of
from bustseg.reports.render import render
from bustseg.reports.tables import markdown_table
from bustseg.runs.record import NOTE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NOT_A_DEVICE = (
    "Research software. **Not a medical device**: not validated for diagnosis; no finding in a patient may rest on it."
)

SPLITS = {
    "grouped": "Near-duplicate images are kept in one subset.",
    "curated": "A published list removed near-duplicate and flawed images first.",
    "kfold": "Folds in which near-duplicate images stay together.",
}
"""Schemes that keep copies of an image in the same subset."""

LEAK = (
    "**This split may leak**: it does not keep near-duplicate images (or images of one patient) in one subset, so the "
    "scores below may be too high. `--data.split grouped` keeps them together."
)
OWN_SPLIT = (
    "The split comes from a file. Whether it keeps near-duplicate images and images of one patient in one subset is "
    "not known here; if it does not, the scores below may be too high."
)

BUSI_LIMITS = (
    "BUSI has no patient ids, so no split of it is known to separate patients, and it has many near-duplicate frames, "
    "some of them in two classes.",
    "Its images come from one hospital and two scanners of one manufacturer; results may differ for other devices, "
    "settings and populations.",
    "Many of its images have burned-in text, calipers or coloured overlays, which a network can learn instead of "
    "tissue.",
)
"""Al-Dhabyani et al. (2020), https://doi.org/10.1016/j.dib.2019.104863, and published audits of their data."""

MARK = "<!-- written by bustseg -->"
"""Marks the end of a description that bustseg wrote and may replace; a person's description is never changed."""


def model_card(run: Run, validation: Mapping[str, float], test: Mapping[str, float] | None = None) -> str:
    """Model card of a run as Markdown.

    Args:
        run: the run, trained and perhaps tested
        validation: its ``val/...`` metrics of the epoch of the weights
        test: every score of its test (``test/...``); those among its metrics when not given
    """
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    return render(
        "model_card.md.j2",
        name=tags.get("mlflow.runName", run.info.run_id),
        not_a_device=NOT_A_DEVICE,
        usage=_usage(run),
        data=_data(run),
        split=_split(tags),
        recipe=markdown_table(("setting", "value"), _recipe(tags, params, metrics)),
        conventions=EMPTY_MASK,
        test=_figures(_of_stage(metrics if test is None else test, "test/")),
        run_id=run.info.run_id,
        validation=_figures(_of_stage(validation, "val/")),
        epoch=f", epoch {int(tags['best.epoch']) + 1}" if "best.epoch" in tags else "",
        limits=[
            "It outlines what looks like a lesion; it does not distinguish benign from malignant lesions.",
            "It has not been tested on other scanners, other hospitals or other populations than the data above.",
            *(BUSI_LIMITS if tags.get("source") == "busi" else ()),
        ],
        origin=markdown_table(("what", "value"), _origin(run)),
    )


def short_note(run: Run, validation: Mapping[str, float]) -> str:
    """A run's description in three lines, for the top of its page."""
    tags, params = run.data.tags, run.data.params
    tested = _of_stage(run.data.metrics, "test/")
    scores = tested or _of_stage(validation, "val/")
    shown = ", ".join(f"Dice `{key}` {scores[f'dice_{key}']:.4f}" for key in CONVENTIONS if f"dice_{key}" in scores)
    which = "test" if tested else "validation (not tested yet)"
    return "\n\n".join(
        [
            f"**{_short_class(tags.get('network', params.get('model.network.class_path', 'network')))}** on "
            f"{tags.get('source', 'unknown data')}, split `{tags.get('split', 'unknown')}`, "
            f"{tags.get('images_train', '?')} / {tags.get('images_val', '?')} / {tags.get('images_test', '?')} images.",
            f"{which}: {shown}" if shown else "",
            "Details: artifact `model_card.md`. Not a medical device.",
            MARK,
        ]
    )


def read_run(client: MlflowClient, run_id: str) -> tuple[Run, dict[str, float]]:
    """A run, and its validation metrics of the epoch of its best weights (else of the last one)."""
    run = client.get_run(run_id)
    epoch = run.data.tags.get("best.epoch")
    found = {name: value for name, value in run.data.metrics.items() if name.startswith("val/")}
    if epoch is not None:
        for name in found:
            points = [point for point in client.get_metric_history(run_id, name) if point.step == int(epoch)]
            if points:
                found[name] = points[-1].value
    return run, found


def may_describe(run: Run) -> bool:
    """Whether bustseg may write the run's description: there is none, or bustseg wrote it."""
    note = run.data.tags.get(NOTE_TAG, "")
    return not note.strip() or note.rstrip().endswith(MARK)


def _of_stage(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _short_class(path: str) -> str:
    return path.rpartition(".")[2]


def _usage(run: Run) -> str:
    if run.outputs is not None and run.outputs.model_outputs:
        return (
            f"import mlflow\nmodel = mlflow.pyfunc.load_model('runs:/{run.info.run_id}/model')\n"
            "mask = model.predict(image)[0]['mask']  # image: array (H, W)"
        )
    return (
        f"from bustseg.deploy.predictor import Predictor\npredictor = Predictor('{run.info.run_id}')\n"
        "mask = predictor(image).mask  # image: array (H, W)"
    )


def _data(run: Run) -> str:
    tags = run.data.tags
    profiles: dict[str, dict[str, Any]] = {}
    for item in run.inputs.dataset_inputs if run.inputs else []:
        subset = item.dataset.name.rpartition("-")[2]
        profiles[subset] = json.loads(item.dataset.profile or "{}")
    labels = [label for label in LABELS if any(label in profile for profile in profiles.values())]
    rows = []
    for subset, title in (("train", "training"), ("val", "validation"), ("test", "test")):
        profile = profiles.get(subset, {})
        counts = [str(profile.get(label, 0)) if profile else "" for label in labels]
        rows.append((title, tags.get(f"images_{subset}", "unknown"), *counts))
    source = (
        f"Source `{tags.get('source', 'unknown')}`, digest of images and masks `{tags.get('data_digest', 'unknown')}`."
    )
    return source + "\n\n" + markdown_table(("subset", "images", *labels), rows, right=range(1, 2 + len(labels)))


def _split(tags: Mapping[str, str]) -> str:
    scheme = tags.get("split", "unknown")
    said = OWN_SPLIT if scheme.endswith(".csv") else SPLITS.get(scheme, LEAK)
    return f"Split `{scheme}`, digest `{tags.get('split_digest', 'unknown')}`. {said}"


def _recipe(tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    def value(name: str) -> str | None:
        given = params.get(name)
        return None if given in (None, "None") else given

    def arguments(prefix: str, *names: str) -> str:
        inside = f"{prefix}.init_args."
        found = {key.removeprefix(inside): value(key) for key in params if key.startswith(inside)}
        shown = {key: text for key, text in found.items() if text is not None and (not names or key in names)}
        return ", ".join(f"{key} {text}" for key, text in shown.items())

    def described(prefix: str, fallback: str, *names: str) -> str:
        inner = arguments(prefix, *names)
        return f"`{value(prefix + '.class_path') or fallback}`" + (f" ({inner})" if inner else "")

    size = tags.get("parameters")
    stopped = f"at most {value('trainer.max_epochs')}, patience {value('early_stopping.patience')}"
    rows = [
        ("network", described("model.network", tags.get("network", "unknown"))),
        ("parameters", f"{int(size):,} ({int(tags.get('parameters_trainable', size)):,} trained)" if size else None),
        ("input", f"{value('data.image_size')} px, mean {value('model.mean')}, std {value('model.std')}"),
        ("loss", described("model.loss", tags.get("loss", "unknown"))),
        ("optimiser", described("model.optimizer", "Adam", "lr", "weight_decay", "momentum", "betas")),
        ("schedule", described("model.lr_scheduler", "constant")),
        ("batch", value("data.batch_size")),
        ("augmentation", value("data.augmentation")),
        ("epochs", stopped),
        (
            "kept",
            f"best `{value('checkpoint.monitor')}`, {tags.get('best.' + str(value('checkpoint.monitor')), 'unknown')}",
        ),
        ("threshold", value("model.threshold")),
        ("precision, device", f"{tags.get('precision', 'unknown')}, {tags.get('device', 'unknown')}"),
        ("seed", value("seed_everything")),
    ]
    return [(title, text) for title, text in rows if text]


def _figures(scores: Mapping[str, float]) -> str:
    """The scores of a subset as tables: overlap metrics by convention, then the others; empty when there are none."""
    overlap = overlap_metrics()
    rows = []
    for convention in CONVENTIONS:
        cells = [metric.text(value_of(scores, f"{metric.name}_{convention}")) for metric in overlap]
        if any(cells):
            rows.append((f"`{convention}`", *cells))
    if not rows:
        return ""
    head = ("convention", *(metric.name for metric in overlap))
    tables = [markdown_table(head, rows, right=range(1, len(head)))]
    further = [
        (f"`{name}`", score(name).description, score(name).metric.text(scores[name]))
        for name in single_scores(scores)
        if name != "loss"
    ]
    if further:
        tables.append(markdown_table(("figure", "meaning", "value"), further, right=[2]))
    return "\n\n".join(tables)


def _origin(run: Run) -> list[tuple[str, str]]:
    tags = run.data.tags
    return [
        ("run", f"`{run.info.run_id}`"),
        ("commit", f"`{tags.get('git_commit', 'unknown')}`"),
        ("versions", tags.get("versions", "unknown")),
        ("configuration, split", "artifacts `config.yaml`, `split.csv`"),
    ]
