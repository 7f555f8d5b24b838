"""`bustseg sweep`: the space, who gets which trial, what is left after failures and kills, and the whole command."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest
import sqlalchemy
import torch
import yaml
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from bustseg import experiment
from bustseg.errors import SweepError, TrainingError
from bustseg.experiment import Experiment, _Parser
from bustseg.runs.tracker import Tracker, tracking_uri
from bustseg.sweep import study, workers
from bustseg.sweep import trial as trial_module
from bustseg.sweep.costs import COSTS
from bustseg.sweep.plan import Dimension, Plan, read_plan
from bustseg.sweep.study import DEATHS, FAILURE, OWNER, RESULT, RETRY_OF, SharedStudy, interrupted, point
from bustseg.sweep.trial import TrialReporter
from bustseg.task import SegmentationTask
from bustseg.training.preflight import known_metrics
from tests.conftest import CONFIGS, REPOSITORY, TINY
from tests.faults import harness

Bustseg = Callable[..., tuple[int, str, str]]

SWEEP = TINY.parent / "sweep.yaml"
LR, BATCH = "model.optimizer.init_args.lr", "data.batch_size"
STORE = "sqlite:///mlruns/optuna.db"


def trials(name: str = "sweep", storage: str = STORE) -> list[FrozenTrial]:
    url = study.storage_url(storage).render_as_string(hide_password=False)
    return optuna.load_study(study_name=name, storage=url).trials


def runs(experiment: str = "tiny") -> tuple[list[Run], dict[str, Run]]:
    """Parents, and the trials' runs by number."""
    client = mlflow.MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    every = client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []
    children = {run.data.tags["sweep.trial"]: run for run in every if "sweep.trial" in run.data.tags}
    return [run for run in every if "sweep.study" in run.data.tags], children


def write(content: dict[str, Any], name: str = "own.yaml") -> Path:
    path = Path(name).resolve()
    path.write_text(yaml.safe_dump({"config": str(TINY), **content}))
    return path


@pytest.fixture(scope="module")
def postgres(new_database: Callable[[], str]) -> str:
    """URL of a new database on a PostgreSQL server."""
    return new_database()


# the space


def test_values_of_each_kind_of_dimension_by_hand() -> None:
    assert Dimension.parse("a", [1e-3, 0.1]).points() == [1e-3, 0.1]
    assert Dimension.parse("a", {"low": 8, "high": 32, "step": 8}).points() == [8, 16, 24, 32]
    assert Dimension.parse("a", {"low": 0.2, "high": 0.5, "step": 0.1}).points() == [0.2, 0.3, 0.4, 0.5]
    log = Dimension.parse("a", {"low": 1.0e-5, "high": 1.0e-2, "log": True}).distribution
    assert log == optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
    with pytest.raises(SweepError, match="a grid needs choices or a step"):
        Dimension.parse("a", {"low": 0.0, "high": 1.0}).points()


def test_a_choice_may_be_a_class_or_a_list() -> None:
    loss = {"class_path": "bustseg.losses.DiceLoss", "init_args": {"smooth": 1.0}}
    dimension = Dimension.parse("model.loss", [loss, None, [1, 2]])
    chosen = dimension.points()
    assert all(value is None or isinstance(value, str) for value in chosen), "Optuna keeps plain values only"
    assert [dimension.value(value) for value in chosen] == [loss, None, [1, 2]]


def test_choices_are_named_in_a_word_or_two() -> None:
    losses = [
        {"class_path": "bustseg.losses.BCELoss"},
        {"class_path": "bustseg.losses.TverskyLoss", "init_args": {"alpha": 0.3, "beta": 0.7}},
        {"class_path": "bustseg.losses.TverskyLoss", "init_args": {"alpha": 0.5, "beta": 0.5}},
    ]
    dimension = Dimension.parse("model.loss", losses)
    assert list(dimension.labels.values()) == [
        "BCELoss",
        "TverskyLoss(alpha 0.3, beta 0.7)",
        "TverskyLoss(alpha 0.5, beta 0.5)",
    ]
    assert dimension.names_itself
    encoders = Dimension.parse("model.network.init_args.encoders", [["resnet18"], ["resnet18", "densenet121"], None])
    assert list(encoders.labels.values()) == ["resnet18", "resnet18 + densenet121", "None"]
    assert not encoders.names_itself
    alike = Dimension.parse("a", ["1e-3", 1e-3])
    assert list(alike.labels.values()) == ["1e-3 #1", "1e-3 #2"]
    number = Dimension.parse("a", {"low": 1e-5, "high": 1.0, "log": True})
    assert [number.label(value) for value in (1e-4, 3.16e-5, 0.01, 0.3, 0.001234)] == [
        "1e-4",
        "3.16e-5",
        "0.01",
        "0.3",
        "0.001234",
    ]


def test_a_trial_is_called_by_what_it_tries() -> None:
    plan = read_plan(CONFIGS / "sweeps" / "lite0_tpe.yaml", [])
    point = {one.key: one.first for one in plan.dimensions} | {LR: 1e-4}
    assert plan.label(point) == "lr 1e-4, weight_decay 1e-4, dropout 0, attention none, batch_size 8, BCELoss"


def test_short_names() -> None:
    keys = ("model.network.init_args.dropout", "x.y.lr", "x.z.lr")
    plan = SimpleNamespace(dimensions=[Dimension.parse(key, [1]) for key in keys])
    assert Plan.short_names(plan) == dict(zip(keys, ("dropout", "y.lr", "z.lr"), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "total"), [("paper_grid", 36), ("lite0_lr_dropout", 9), ("lite0_tpe", 60)])
def test_the_shipped_sweeps_can_be_read(name: str, total: int) -> None:
    plan = read_plan(CONFIGS / "sweeps" / f"{name}.yaml", [])
    assert plan.total == total
    assert plan.objective in known_metrics()
    if plan.grid:
        points = plan.points()
        assert len({json.dumps(one) for one in points}) == total
        config = plan.best_config(points[-1])
        assert config["model"]["network"]["init_args"]["dropout"] == 0.5
        assert config["model"]["optimizer"]["init_args"]["lr"] == points[-1][LR]


def test_known_metrics_are_those_that_a_fit_logs(trained_run: Any) -> None:
    logged = set(mlflow.MlflowClient(trained_run.uri).get_run(trained_run.run_id).data.metrics)
    # values of a step are none of an epoch, which alone an objective can be
    of_epochs = {name for name in logged if name.startswith(("val/", "train/")) and not name.endswith("_step")}
    assert of_epochs <= set(known_metrics())


BAD = {
    "no file": (None, "no config file at own.yaml"),
    "empty space": ({"space": {}}, "has an empty space"),
    "no choices": ({"space": {BATCH: []}}, "the list of choices is empty"),
    "directions": (
        {"space": {BATCH: [8]}, "objective": ["val/loss", "latency_ms"]},
        "has 2 objectives and 1 directions: give a direction for each",
    ),
    "objective twice": (
        {"space": {BATCH: [8]}, "objective": ["val/loss"] * 2, "direction": ["minimize"] * 2},
        "has an objective twice: val/loss",
    ),
    "pruner of several": (
        {
            "space": {BATCH: [8]},
            "objective": ["val/loss", "gflops"],
            "direction": ["minimize"] * 2,
            "pruner": "MedianPruner",
        },
        "Optuna can prune only with a single objective",
    ),
    "cost first": (
        {"space": {BATCH: [8]}, "objective": ["gflops", "val/loss"], "direction": ["minimize"] * 2},
        "the first objective is gflops, which does not change during training",
    ),
    "half a range": ({"space": {BATCH: {"low": 2}}}, "high is missing"),
    "unknown key in the file": ({"spaces": {}}, "unknown key `spaces` in own.yaml: did you mean `space`?"),
    "unknown key in the space": (
        {"space": {"model.network.init_args.dropot": [0.1]}},
        "space has the key `model.network.init_args.dropot`, which `fit` does not know: did you mean "
        "`model.network.init_args.dropout`",
    ),
    "unknown key in the overrides": (
        {"space": {BATCH: [8]}, "overrides": {"trainer.max_epoch": 3}},
        "overrides has the key `trainer.max_epoch`, which `fit` does not know: did you mean `trainer.max_epochs`",
    ),
    "argument beside its class": (
        {"space": {"model.optimizer.lr": [0.1]}},
        "space has the key `model.optimizer.lr`, which `fit` does not know: did you mean "
        "`model.optimizer.init_args.lr`",
    ),
    "wrong value in the overrides": (
        {"space": {BATCH: [8]}, "overrides": {"trainer.max_epochs": "three"}},
        "`trainer.max_epochs` is three: give a whole number",
    ),
    "wrong type": ({"space": {BATCH: ["many"]}}, "`data.batch_size` is many: give a whole number"),
    "unknown sampler": ({"space": {BATCH: [8]}, "n_trials": 2, "sampler": "TPSampler"}, "unknown sampler TPSampler"),
    "unknown option": (
        {"space": {BATCH: [8]}, "n_trials": 2, "sampler": {"class_path": "TPESampler", "init_args": {"sed": 1}}},
        "sampler TPESampler: Option 'sed' is not accepted",
    ),
    "no number": ({"space": {BATCH: [8]}, "sampler": "TPESampler"}, "has no n_trials"),
    "continuous grid": ({"space": {LR: {"low": 0.1, "high": 0.2}}}, "a grid needs choices or a step here"),
    "objective": (
        {"space": {BATCH: [8]}, "objective": "val/dice_lesio"},
        "no fit logs the objective val/dice_lesio: did you mean val/dice_lesion",
    ),
    "dead storage": (
        {"space": {BATCH: [8]}, "storage": "postgresql://me:secret@127.0.0.1:9/x"},
        "cannot use the storage postgresql+psycopg://me:***@127.0.0.1:9/x",
    ),
    "no storage": ({"space": {BATCH: [8]}, "storage": "optuna.db"}, "not a storage URL"),
    "several devices": ({"space": {BATCH: [8]}, "overrides": {"trainer.devices": 2}}, "a trial runs on one device"),
    "no data": ({"space": {BATCH: [8]}, "overrides": {"data.root": "nowhere"}}, "no data folder at nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_leaves_nothing(case: str, bustseg: Bustseg, phantoms: Path) -> None:
    content, message = BAD[case]
    if content is not None:
        write(content)
    root = [] if case == "no data" else ["--data.root", phantoms]
    code, _, err = bustseg("sweep", "--config", "own.yaml", *root)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert "secret" not in err
    assert not Path("mlruns/mlflow.db").exists() or runs() == ([], {})


def test_help_has_an_example(bustseg: Bustseg) -> None:
    code, out, _ = bustseg("sweep", "--help")
    assert code == 0
    assert "example: bustseg sweep --config" in out


def test_a_config_is_parsed_once_in_a_whole_sweep(
    bustseg: Bustseg, phantoms: Path, fits: Callable[[Fit], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base once, by one parser, out of the file, the overrides and the options; a trial is a change to it."""
    files: list[str] = []
    parsers: list[object] = []
    changes: list[object] = []
    parse_args, parse_object, make = _Parser.parse_args, _Parser.parse_object, experiment.make_parser

    def parsing_args(self: _Parser, args: list[str], **kwargs: Any) -> Any:
        files.extend(args[place + 1] for place, option in enumerate(args) if option == "--config")
        return parse_args(self, args, **kwargs)

    def parsing_object(self: _Parser, *args: Any, **kwargs: Any) -> Any:
        if self is experiment._parser():  # and not one of those that it makes for classes
            changes.append(args)
        return parse_object(self, *args, **kwargs)

    monkeypatch.setattr(_Parser, "parse_args", parsing_args)
    monkeypatch.setattr(_Parser, "parse_object", parsing_object)
    monkeypatch.setattr(experiment, "make_parser", lambda: parsers.append(None) or make())
    experiment._parser.cache_clear()
    fits(lambda config: 0.5)
    assert bustseg("sweep", "--config", SWEEP, "--data.root", phantoms)[0] == 0
    assert [Path(file).name for file in files] == ["tiny.yaml"]
    assert len(parsers) == 1
    assert len(changes) == 1 + 4 + 1, "the first point, which is tried before all, four trials, the best config"


# who gets which trial


@pytest.fixture
def plan() -> Plan:
    return read_plan(write({"space": {LR: [1e-3, 1e-2, 1e-1], BATCH: [4, 8]}}), [])


def opened(plan: Plan, resume: bool = True, supervisor: int | None = None) -> SharedStudy:
    shared = SharedStudy(plan, supervisor)
    shared.open(resume)
    return shared


def complete(shared: SharedStudy, trial: optuna.Trial, value: float = 0.5) -> None:
    shared.note(trial, **{RESULT: {"value": value, "epoch": 0, "epochs": 1, "fit_seconds": 1.0}})
    shared.finish(trial)


def _drain(plan: Plan, count: int) -> None:
    """``count`` workers that open the study together and take trials until none is left."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            shared = opened(plan)
            while (trial := shared.claim()) is not None:
                time.sleep(0.01)
                complete(shared, trial)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_each_point_goes_to_one_of_several_workers(plan: Plan) -> None:
    _drain(plan, 4)
    done = trials("own")
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 6
    assert sorted(json.dumps(trial.params) for trial in done) == sorted(json.dumps(one) for one in plan.points())


def test_each_point_goes_to_one_of_several_workers_on_postgresql(plan: Plan, postgres: str) -> None:
    plan = read_plan(plan.path, [], study="threads", storage=postgres)
    _drain(plan, 4)
    done = trials("threads", postgres)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 6
    assert sorted(json.dumps(trial.params) for trial in done) == sorted(json.dumps(one) for one in plan.points())


def test_a_sampler_ends_after_its_number_of_trials_and_does_not_begin_again(plan: Plan) -> None:
    sampler = {"class_path": "RandomSampler", "init_args": {"seed": 0}}
    path = write({"space": {LR: {"low": 1e-5, "high": 1e-1, "log": True}}, "sampler": sampler, "n_trials": 3})
    drawn = []
    for total in (3, 5):
        shared = opened(read_plan(write({**yaml.safe_load(path.read_text()), "n_trials": total}), []))
        while (trial := shared.claim()) is not None:
            drawn.append(trial.params[LR])
            complete(shared, trial)
    assert len(drawn) == 5
    assert len(set(drawn)) == 5, "a resumed study does not draw the first points again"


def test_a_dead_workers_trial_goes_back_in_line_once(plan: Plan) -> None:
    shared = opened(plan)
    trial = shared.claim()
    assert trial is not None
    shared.note(trial, **{OWNER: {**shared.me, "started": shared.me["started"] - 1000}})
    for _ in range(2):
        opened(plan)
    dead, *others = trials("own")
    assert interrupted(dead)
    (retry,) = [other for other in others if RETRY_OF in other.user_attrs]
    assert retry.user_attrs[RETRY_OF] == dead.number
    assert point(retry) == trial.params
    assert len(others) == 6
    # a claim that died before it said whose it is
    shared.study.ask()
    assert trials("own")[1].state == TrialState.RUNNING
    opened(plan)
    assert interrupted(trials("own")[1])


def test_a_living_workers_trial_is_left_alone(plan: Plan) -> None:
    shared = opened(plan)
    here, remote, silent = shared.claim(), shared.claim(), shared.claim()
    assert here is not None and remote is not None and silent is not None  # noqa: PT018
    for other in (remote, silent):
        shared.note(other, **{OWNER: {**shared.me, "machine": "another", "pid": 1}})
    with shared.storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00' WHERE trial_id = :id"),
            {"id": silent._trial_id},
        )
    opened(plan)
    states = {trial.number: trial.state for trial in trials("own")}
    assert states[here.number] == states[remote.number] == TrialState.RUNNING
    assert states[silent.number] == TrialState.FAIL


def test_a_trial_that_kills_its_worker_twice_has_failed(plan: Plan) -> None:
    """As a trial does that takes all memory, while the process that looks after the workers lives."""
    shared = opened(plan, supervisor=os.getpid())
    for deaths in (0, 1):
        trial = next(trial for trial in iter(shared.claim, None) if trial.params == plan.points()[0])
        assert trial.user_attrs.get(DEATHS, 0) == deaths
        shared.note(trial, **{OWNER: {**shared.me, "pid": 2**22 + 1}})
        opened(plan)
    failed = [trial for trial in trials("own") if FAILURE in trial.user_attrs]
    assert [point(trial) for trial in failed] == [plan.points()[0]]
    assert "memory" in failed[0].user_attrs[FAILURE]


def test_a_result_that_was_written_down_before_the_end_counts(plan: Plan) -> None:
    shared = opened(plan)
    trial = shared.claim()
    assert trial is not None
    shared.note(trial, **{RESULT: {"value": 0.25, "epoch": 0, "epochs": 1, "fit_seconds": 1.0}})
    shared.note(trial, **{OWNER: {**shared.me, "pid": 2**22 + 1}})
    opened(plan)
    assert trials("own")[0].value == 0.25


def test_a_study_that_somebody_works_on_is_joined_without_resume(plan: Plan) -> None:
    shared = opened(plan, resume=False)
    opened(plan, resume=False)  # nobody has begun
    trial = shared.claim()
    opened(plan, resume=False)  # this process has
    assert trial is not None
    complete(shared, trial)
    with pytest.raises(SweepError, match="already exists with 1 finished trials: --resume"):
        opened(plan, resume=False)
    other = read_plan(write({"space": {LR: [1e-3, 1e-2], BATCH: [4, 8]}}), [])
    with pytest.raises(SweepError, match=f"belongs to another sweep .space.{LR} is"):
        opened(other)


def test_storage_urls() -> None:
    url = study.storage_url("sqlite:///a/b.db")
    assert url.database == str(Path("a/b.db").resolve())
    assert study.storage_url("postgresql://u@h/d").drivername == "postgresql+psycopg"
    for text in ("sqlite://", "sqlite:///:memory:", "oracle://u@h/d"):
        with pytest.raises(SweepError):
            study.storage_url(text)


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [workers.threads_each(count) for count in (1, 3, 16)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert workers.threads_each(2) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    devices = workers.gpus()
    shares = [workers.environment(index, 3, devices) for index in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5", "2"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"1"}


# one trial


def test_the_objective_is_the_best_epoch() -> None:
    asked = optuna.create_study(direction="minimize").ask()
    reporter = TrialReporter(asked, ["val/loss"], "minimize", "NopPruner")
    trainer = SimpleNamespace(sanity_checking=False, should_stop=False)
    for epoch, value in enumerate((0.5, 0.2, math.nan, 0.4)):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val/loss": torch.tensor(value)}
        reporter.on_validation_end(trainer, None)  # type: ignore[arg-type]
        reporter.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        reporter.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]  (an epoch without a validation)
    assert (reporter.scores, reporter.epoch, reporter.epochs) == ({"val/loss": pytest.approx(0.2)}, 1, 4)
    assert list(asked.study.trials[0].intermediate_values) == [0, 1, 3]
    trainer.callback_metrics = {"val/dice_lesion": torch.tensor(1.0)}
    reporter.on_validation_end(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="no fit logs the objective val/loss"):
        reporter.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]


def test_further_objectives_are_those_of_the_first_one_s_best_epoch() -> None:
    asked = optuna.create_study(directions=["maximize", "minimize", "minimize"]).ask()
    reporter = TrialReporter(asked, ["val/dice_lesion", "val/hd95", "parameters"], "maximize", "NopPruner")
    trainer = SimpleNamespace(sanity_checking=False, should_stop=False, datamodule=SimpleNamespace(image_size=(8, 8)))
    for epoch, (dice, hd95) in enumerate(((0.2, 9.0), (0.6, 5.0), (0.5, 1.0))):
        logged = {"val/dice_lesion": torch.tensor(dice), "val/hd95": torch.tensor(hd95)}
        trainer.current_epoch, trainer.callback_metrics = epoch, logged
        reporter.on_validation_end(trainer, None)  # type: ignore[arg-type]
        reporter.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    reporter.on_fit_end(trainer, SegmentationTask(torch.nn.Conv2d(3, 1, 1)))  # type: ignore[arg-type]
    assert reporter.scores == {"val/dice_lesion": pytest.approx(0.6), "val/hd95": 5.0, "parameters": 4.0}
    assert list(reporter.history) == [0, 1, 2]
    assert not asked.study.trials[0].intermediate_values, "Optuna takes none of several objectives"


def test_costs_are_measured_on_the_network_as_it_is() -> None:
    task = SegmentationTask(torch.nn.Conv2d(3, 1, 3, padding=1)).train()
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=contextlib.nullcontext))
    found = {name: cost(trainer, task, (32, 16)) for name, cost in COSTS.items()}  # type: ignore[arg-type]
    assert 0 < found["latency_ms"] < 1000
    assert found["parameters"] == 28
    assert found["gflops"] == pytest.approx(2 * 27 * 32 * 16 / 1e9)
    assert task.training


Fit = Callable[[dict[str, Any]], float | dict[str, float] | None]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fit], list[dict[str, Any]]]:
    """Takes the place of training: a function of the configuration gives the objectives, or raises."""

    def use(fit: Fit) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []

        def run_fit(experiment: Experiment, tags: dict[str, str], callbacks: list[TrialReporter]) -> None:
            config = experiment.config
            seen.append(config)
            options = {**config["tracking"], "tags": tags}
            tracker = Tracker(**options)
            callbacks[0].setup(SimpleNamespace(loggers=[tracker]), None, "fit")  # type: ignore[arg-type]
            try:
                found = fit(config)
                callbacks[0].scores = (
                    found if isinstance(found, dict) else {} if found is None else {callbacks[0].metrics[0]: found}
                )
            except BaseException as error:
                tracker.killed = isinstance(error, KeyboardInterrupt)
                tracker.finalize("failed")
                raise
            tracker.finalize("success")

        monkeypatch.setattr(trial_module, "run_fit", run_fit)
        return seen

    return use


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(
    bustseg: Bustseg, phantoms: Path, fits: Callable[[Fit], list[dict[str, Any]]]
) -> None:
    def fit(config: dict[str, Any]) -> float | None:
        match config["data"]["batch_size"], config["model"]["optimizer"]["init_args"]["lr"]:
            case 4, 1e-3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            case 4, _:
                raise TrainingError("the loss became nan in epoch 0")
            case _, 1e-3:
                return None
        return 0.75

    seen = fits(fit)
    code, out, err = bustseg("sweep", "--config", SWEEP, "--data.root", phantoms)
    assert code == 0, err
    reasons = {(trial.params[LR], trial.params[BATCH]): trial.user_attrs.get(FAILURE) for trial in trials()}
    assert reasons[1e-3, 4].startswith("out of memory: DefaultCPUAllocator")
    assert reasons[1e-2, 4] == "TrainingError: the loss became nan in epoch 0"
    assert reasons[1e-3, 8] == "val/auc_pixel was never a number"
    assert reasons[1e-2, 8] is None
    assert "out of memory" in out
    ((parent,), children) = runs()
    assert parent.info.status == "FINISHED"
    assert (parent.data.metrics["sweep/fail"], parent.data.metrics["sweep/objective"]) == (3, 0.75)
    tags = {number: run.data.tags for number, run in children.items()}
    assert sorted(tag["sweep.state"] for tag in tags.values()) == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert {tag["sweep.reason"] for tag in tags.values() if "sweep.reason" in tag} == set(reasons.values()) - {None}
    assert all("sweep/seconds" in run.data.metrics for run in children.values())
    # a failed trial is a finished one
    assert bustseg("sweep", "--config", SWEEP, "--data.root", phantoms, "--resume")[0] == 0
    assert len(seen) == 4


@pytest.mark.slow
def test_several_objectives_have_a_front(
    bustseg: Bustseg, phantoms: Path, fits: Callable[[Fit], list[dict[str, Any]]]
) -> None:
    """Trial 1 is beaten by trial 0 in both, trial 2 is cheaper and worse, trial 3 better and dearer."""
    found = [(0.7, 20.0), (0.6, 30.0), (0.5, 10.0), (0.8, 40.0)]
    names = [f"bustseg.losses.{name}" for name in ("BCELoss", "DiceLoss", "", "HybridLoss")]

    def fit(config: dict[str, Any]) -> dict[str, float]:
        assert config["tracking"]["description"] is None
        loss = config["model"]["loss"]
        place = 2 if loss["init_args"].get("empty_smooth") == 0.1 else names.index(loss["class_path"])
        dice, latency = found[place]
        return {"val/dice_lesion": dice, "latency_ms": latency}

    fits(fit)
    kinds = (("BCELoss", {}), ("DiceLoss", {}), ("DiceLoss", {"empty_smooth": 0.1}), ("HybridLoss", {}))
    space = [{"class_path": f"bustseg.losses.{name}", "init_args": arguments} for name, arguments in kinds]
    path = write(
        {
            "space": {"model.loss": space},
            "overrides": {"tracking.description": "what the whole sweep is for"},
            "objective": ["val/dice_lesion", "latency_ms"],
            "direction": ["maximize", "minimize"],
        }
    )
    code, out, err = bustseg("sweep", "--config", path, "--data.root", phantoms)
    assert code == 0, err
    assert [name.strip() for name in next(line for line in out.splitlines() if "┃ trial" in line).split("┃")[1:-1]] == [
        "trial",
        "state",
        "val/dice_lesion",
        "latency_ms",
        "pareto",
        "best_epoch",
        "loss",
        "seconds",
    ]
    assert "Pareto front: trials 0, 2, 3; their configs are in mlruns/sweeps/own/pareto" in out
    assert "best: trial 3, val/dice_lesion 0.8000 in epoch 1 of 0, latency_ms 40" in out
    table = pd.read_csv("mlruns/sweeps/own/trials.csv").set_index("trial")
    assert table["pareto"].to_dict() == {3: True, 0: True, 1: False, 2: True}
    assert table["model.loss"].to_dict() == {
        3: "HybridLoss",
        0: "BCELoss",
        1: "DiceLoss(empty_smooth 0.05)",
        2: "DiceLoss(empty_smooth 0.1)",
    }
    assert table["latency_ms"][2] == 10
    config = Experiment.read(Path("mlruns/sweeps/own/pareto/trial_2.yaml"))
    assert config["model.loss"]["init_args"]["empty_smooth"] == 0.1
    assert {path.name for path in Path("mlruns/sweeps/own/pareto").iterdir()} == {
        f"trial_{number}.yaml" for number in (0, 2, 3)
    }
    assert {path.name for path in Path("mlruns/sweeps/own/plots").glob("*.png")} >= {"history.png", "pareto.png"}

    ((parent,), children) = runs()
    assert parent.data.tags["mlflow.note.content"] == "what the whole sweep is for"
    assert parent.data.params["sweep.objective"] == "val/dice_lesion, latency_ms"
    run = children["0"]
    assert run.info.run_name == "trial 0: BCELoss"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**Trial 0** of the sweep `own`: BCELoss.")
    assert "COMPLETE: val/dice_lesion 0.7000 in epoch 1 of 0, latency_ms 20." in note
    assert run.data.metrics["sweep/latency_ms"] == 20
    listed = mlflow.MlflowClient(tracking_uri()).list_artifacts(parent.info.run_id, "pareto")
    assert len(listed) == 3
    # the study belongs to these objectives
    path = write({"space": {"model.loss": space}, "objective": "val/dice_lesion"})
    code, _, err = bustseg("sweep", "--config", path, "--data.root", phantoms, "--resume")
    assert (code, "belongs to another sweep" in err) == (2, True)


@pytest.mark.slow
def test_ctrl_c_leaves_a_study_that_resumes(
    bustseg: Bustseg, phantoms: Path, fits: Callable[[Fit], list[dict[str, Any]]]
) -> None:
    stop = [False, True, False, False, False]

    def fit(config: dict[str, Any]) -> float:
        if stop.pop(0):
            raise KeyboardInterrupt
        return config["model"]["optimizer"]["init_args"]["lr"]

    seen = fits(fit)
    code, out, _ = bustseg("sweep", "--config", SWEEP, "--data.root", phantoms)
    assert code == 130
    assert "1 of 4 trials are done; the same command with --resume continues" in out
    assert {trial.state for trial in trials()} == {TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING}
    ((parent,), children) = runs()
    assert (parent.info.status, children["1"].info.status) == ("KILLED", "KILLED")
    assert children["1"].data.tags["sweep.state"] == "INTERRUPTED"
    assert bustseg("sweep", "--config", SWEEP, "--data.root", phantoms, "--resume")[0] == 0
    assert len(seen) == 5
    done = [trial.params for trial in trials() if trial.state == TrialState.COMPLETE]
    assert len({json.dumps(params) for params in done}) == len(done) == 4
    ((parent,), children) = runs()
    assert parent.info.status == "FINISHED"
    assert "RUNNING" not in {run.info.status for run in children.values()}


def test_what_meets_every_trial_stops_the_sweep(
    bustseg: Bustseg, phantoms: Path, fits: Callable[[Fit], list[dict[str, Any]]]
) -> None:
    def fit(config: dict[str, Any]) -> float:
        raise SweepError("no fit logs the objective")

    seen = fits(fit)
    code, _, err = bustseg("sweep", "--config", SWEEP, "--data.root", phantoms)
    assert (code, len(seen)) == (2, 1)
    assert err.strip() == "error: no fit logs the objective"
    assert TrialState.RUNNING not in {trial.state for trial in trials()}


# the whole command


@pytest.mark.slow
def test_a_grid_from_its_start_to_the_best_config(bustseg: Bustseg, phantoms: Path) -> None:
    """Four real fits, one learning rate of which turns the loss into nan."""
    path = write(
        {
            "space": {LR: [1e-3, 1e30], BATCH: [4, 8]},
            "overrides": {"trainer.max_epochs": 2},
            "objective": "val/auc_pixel",
        },
        "grid.yaml",
    )
    code, out, err = bustseg("sweep", "--config", path, "--data.root", phantoms)
    assert code == 0, err
    assert out.count("epoch 1/2") == 0, "a trial's own lines stay off the terminal"
    done = {trial.params[BATCH]: trial for trial in trials("grid") if trial.state == TrialState.COMPLETE}
    assert set(done) == {4, 8}
    ((parent,), children) = runs()
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert sorted(run.info.status for run in children.values()) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    client = mlflow.MlflowClient(tracking_uri())
    for trial in done.values():
        run = children[str(trial.number)]
        values = [one.value for one in client.get_metric_history(run.info.run_id, "val/auc_pixel")]
        assert trial.value == pytest.approx(max(values), abs=1e-7)
        assert run.data.params[BATCH] == str(trial.params[BATCH])
        assert not list(Path(f"mlruns/artifacts/{run.info.run_id}").rglob("MLmodel"))
    failed = next(run for run in children.values() if run.info.status == "FAILED")
    assert "nan" in failed.data.tags["sweep.reason"]

    artifacts = Path("mlruns/artifacts") / parent.info.run_id / "artifacts"
    names = {str(file.relative_to(artifacts)) for file in artifacts.rglob("*") if file.is_file()}
    drawn = ("history", "slice", "parallel_coordinate", "importances", "epochs")
    plots = {f"plots/{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert names >= plots | {"best_config.yaml", "trials.csv", "grid.yaml"}
    best = max(done.values(), key=lambda trial: float(trial.value or 0))
    config = Experiment.read(artifacts / "best_config.yaml").config
    assert config["data"]["batch_size"] == best.params[BATCH]
    assert config["trainer"]["max_epochs"] == 2
    # the written config is that of the trial, and a fit by itself gives what the trial gave
    assert bustseg("fit", "--config", "mlruns/sweeps/grid/best_config.yaml")[0] == 0
    alone = client.search_runs([parent.info.experiment_id], order_by=["attributes.start_time DESC"])[0]
    values = [one.value for one in client.get_metric_history(alone.info.run_id, "val/auc_pixel")]
    assert max(values) == pytest.approx(best.value, abs=1e-7)


@pytest.mark.slow
def test_a_pruned_trial_ends_early_and_says_why(bustseg: Bustseg, phantoms: Path) -> None:
    path = write(
        {
            "space": {LR: {"low": 1e-4, "high": 1e-2, "log": True}},
            "overrides": {"trainer.max_epochs": 3},
            "objective": "val/auc_pixel",
            "sampler": {"class_path": "TPESampler", "init_args": {"seed": 0}},
            "pruner": {"class_path": "ThresholdPruner", "init_args": {"lower": 2.0}},
            "n_trials": 1,
        }
    )
    code, _, err = bustseg("sweep", "--config", path, "--data.root", phantoms)
    assert code == 2
    assert "no trial of own finished" in err
    (trial,) = trials("own")
    assert trial.state == TrialState.PRUNED
    ((parent,), children) = runs()
    run = children["0"]
    assert (run.info.status, run.data.tags["sweep.state"]) == ("FINISHED", "PRUNED")
    assert run.data.tags["sweep.reason"].startswith("ThresholdPruner after epoch 1")
    assert len(mlflow.MlflowClient(tracking_uri()).get_metric_history(run.info.run_id, "val/loss")) == 1
    assert parent.data.metrics["sweep/pruned"] == 1


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep_kill", REPOSITORY / "benchmarks" / "sweep_kill.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_sweep_that_is_killed_resumes(phantoms: Path) -> None:
    args = ("sweep", "--config", SWEEP, "--data.root", phantoms, "--resume")
    for printed, seconds in (("study ", 0.0), ("\ntrial ", 0.3)):
        sweep = harness.start(Path.cwd(), *args)
        sweep.wait_for(printed)
        time.sleep(seconds)
        sweep.kill()
        assert sweep.wait().code == -signal.SIGKILL, "it was still at work"
    last = harness.run(Path.cwd(), *args)
    assert last.code == 0, last.err
    _benchmark().check(Path.cwd(), "sweep", 4)


@pytest.mark.slow
def test_two_workers_on_postgresql_run_each_point_once(bustseg: Bustseg, phantoms: Path, postgres: str) -> None:
    options = ["--config", SWEEP, "--data.root", phantoms, "--storage", postgres, "--study", "two"]
    code, _, err = bustseg("sweep", *options, "--workers", 2)
    assert code == 0, err
    done = trials("two", postgres)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert len({json.dumps(trial.params) for trial in done}) == 4
    assert os.getpid() not in {trial.user_attrs[OWNER]["pid"] for trial in done}
    ((parent,), children) = runs()
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children.values()} == {"FINISHED"}


def test_a_worker_ends_with_its_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    read, write_end = os.pipe()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: read))
    workers.follow_supervisor()
    time.sleep(0.2)
    assert not codes
    os.close(write_end)
    deadline = time.monotonic() + 10
    while not codes and time.monotonic() < deadline:
        time.sleep(0.01)
    os.close(read)
    assert codes == [130]


def test_termination_counts_as_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stopped() -> None:
        with workers.termination_is_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert signal.getsignal(signal.SIGTERM) == before
