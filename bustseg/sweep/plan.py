"""The plan of a sweep: its file, the search space, and the fit at each point."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
from jsonargparse import ArgumentError, ArgumentParser, get_loader
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from bustseg.bounds import read_yaml
from bustseg.errors import SweepError, UnknownKeyError, UserError
from bustseg.experiment import Experiment, defaults, put
from bustseg.presets import find_config
from bustseg.runs.tracker import flatten

GRID_SAMPLERS = ("GridSampler", "BruteForceSampler")
"""Samplers that run every point of the space once. Optuna's own versions may run a point twice with several workers."""

MAX_POINTS = 10_000

# keys that may differ between machines within one experiment
_OF_THE_MACHINE = (
    "tracking",
    "data.root",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
)


Direction = Literal["maximize", "minimize"]


@dataclass
class SweepFile:
    """The keys of a sweep's YAML file.

    Attributes:
        config: config of the fit, relative to this file
        space: dotted config key -> list of choices, or mapping with ``choices``, or ``low``, ``high`` and optionally
            ``step`` and ``log``; whole numbers make a range of whole numbers
        overrides: dotted config key -> value for every trial
        objective: metric by which a trial is judged, in its best epoch; or a list of metrics, of which the first
            determines the best epoch and the others may also be costs such as ``latency_ms``
        direction: ``maximize`` or ``minimize``, or a list with one for each objective
        study: name of the study; the file's name when not given
        storage: Optuna storage; ``OPTUNA_STORAGE`` or ``sqlite:///mlruns/optuna.db`` when not given
        n_trials: number of trials; the whole grid when not given
        sampler: class path, or mapping with ``class_path`` and ``init_args``; the grid when not given
        pruner: class path or mapping, as for ``sampler``; none when not given
    """

    config: str
    space: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    objective: str | list[str] = "val/dice_lesion"
    direction: Direction | list[Direction] = "maximize"
    study: str | None = None
    storage: str | None = None
    n_trials: int | None = None
    sampler: str | dict[str, Any] | None = None
    pruner: str | dict[str, Any] | None = None


@dataclass(frozen=True)
class Dimension:
    """One searched config key.

    Attributes:
        key: dotted config key, which is also the parameter's name in Optuna
        distribution: its values in Optuna's form
        decoded: config value for each Optuna choice that is not itself the value (lists and mappings are stored as
            JSON)
    """

    key: str
    distribution: BaseDistribution
    decoded: Mapping[str, Any]

    @classmethod
    def parse(cls, key: str, spec: Any) -> Dimension:
        """Parse its specification in the file.

        Raises:
            SweepError: it is not valid
        """
        if isinstance(spec, list):
            spec = {"choices": spec}
        if not isinstance(spec, Mapping):
            raise SweepError(f"space of {key}: give a list of choices, or low and high")
        if unknown := set(spec) - {"choices", "low", "high", "step", "log"}:
            raise SweepError(
                f"space of {key}: unknown {', '.join(sorted(unknown))}; there are choices, low, high, step, log"
            )
        try:
            if "choices" in spec:
                return cls._of_choices(key, spec["choices"])
            low, high, step, log = spec["low"], spec["high"], spec.get("step"), bool(spec.get("log", False))
            if all(isinstance(value, int) for value in (low, high, 1 if step is None else step)):
                return cls(key, IntDistribution(low, high, log=log, step=1 if step is None else step), {})
            step = None if step is None else float(step)
            return cls(key, FloatDistribution(float(low), float(high), log=log, step=step), {})
        except KeyError as error:
            raise SweepError(f"space of {key}: {error.args[0]} is missing; give choices, or low and high") from error
        except (TypeError, ValueError) as error:
            raise SweepError(f"space of {key}: {error}") from error

    @classmethod
    def _of_choices(cls, key: str, values: Any) -> Dimension:
        if not isinstance(values, list) or not values:
            raise SweepError(f"space of {key}: the list of choices is empty")
        choices: list[CategoricalChoiceType] = []
        decoded = {}
        for value in values:
            if value is None or isinstance(value, bool | int | float | str):
                choices.append(value)
            else:
                text = json.dumps(value)
                decoded[text] = value
                choices.append(text)
        if len(set(choices)) < len(choices):
            raise SweepError(f"space of {key}: a choice is listed twice")
        return cls(key, CategoricalDistribution(choices), decoded)

    @property
    def first(self) -> Any:
        """Its first value, in Optuna's form."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return choices[0]
            case IntDistribution(low=low) | FloatDistribution(low=low):
                return low

    def value(self, chosen: Any) -> Any:
        """Config value of an Optuna choice."""
        return copy.deepcopy(self.decoded[chosen]) if chosen in self.decoded else chosen

    @cached_property
    def labels(self) -> dict[Any, str]:
        """A label for each choice of a dimension with choices.

        A loss is ``BCELoss``, or ``HybridLoss(alpha 0.3)`` with the arguments that differ if its class is listed twice.
        """
        if not isinstance(self.distribution, CategoricalDistribution):
            return {}
        choices = list(self.distribution.choices)
        values = [self.value(choice) for choice in choices]
        short = [_label(value) for value in values]
        whole = [
            _label(_where_it_differs(value, [other for other, name in zip(values, short, strict=True) if name == one]))
            for value, one in zip(values, short, strict=True)
        ]
        words = [one if short.count(one) == 1 else other for one, other in zip(short, whole, strict=True)]
        return {
            choice: word if words.count(word) == 1 else f"{word} #{place + 1}"
            for place, (choice, word) in enumerate(zip(choices, words, strict=True))
        }

    @property
    def names_itself(self) -> bool:
        """Whether its labels need no key, since each choice is a class."""
        values = [self.value(choice) for choice in self.labels]
        return bool(values) and all(isinstance(value, Mapping) and "class_path" in value for value in values)

    def label(self, chosen: Any) -> str:
        """Label of an Optuna choice."""
        return self.labels.get(chosen) or _label(chosen)

    def points(self) -> list[Any]:
        """All values of a finite dimension, in Optuna's form.

        Raises:
            SweepError: it is continuous
        """
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return list(choices)
            case IntDistribution(low=low, high=high, step=step):
                return list(itertools.islice(range(low, high + 1, step), MAX_POINTS + 1))
            case FloatDistribution(low=low, high=high, step=float(step)):
                steps = math.floor((high - low) / step + 1e-9)
                # rounded, so that 0.2 + 2 * 0.1 is 0.4
                return [round(low + index * step, 12) for index in range(min(steps, MAX_POINTS) + 1)]
        raise SweepError(f"space of {self.key}: a grid needs choices or a step here; or name another sampler")


def _where_it_differs(value: Any, alike: Sequence[Any]) -> Any:
    """A class with only those arguments that differ within ``alike``; for :func:`_label`."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    every = [other.get("init_args") or {} for other in alike if isinstance(other, Mapping)]
    own = value.get("init_args") or {}
    differing = {key: item for key, item in own.items() if any(other.get(key) != item for other in every)}
    return {"class_path": value["class_path"], "shown": differing}


def _label(value: Any) -> str:
    """A short label of a config value: ``1e-4``, ``BCELoss``, ``resnet18 + densenet121``."""
    if isinstance(value, float):
        plain = f"{value:.4g}"
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        power = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return power if len(power) < len(plain) else plain
    if isinstance(value, Mapping) and "class_path" in value:
        name = str(value["class_path"]).rpartition(".")[2]
        inside = ", ".join(f"{key} {_label(item)}" for key, item in (value.get("shown") or {}).items())
        return f"{name}({inside})" if inside else name
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_label(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, list):
        return " + ".join(_label(item) for item in value) or "[]"
    return str(value)


@dataclass(frozen=True)
class Plan:
    """A sweep that is ready to run.

    Attributes:
        path: the sweep's file
        study: name of the study
        storage: Optuna URL
        objectives: metrics by which a trial is judged, in the best epoch by the first of them
        directions: ``maximize`` or ``minimize`` for each
        dimensions: the searched keys
        base: the experiment of every trial, before a point is applied
        n_trials: number of trials; None for the whole grid
        grid: whether every point is run once
        best_logs_model: ``tracking.log_model`` in ``best_config.yaml``; the trials of a sweep log no models unless its
            file or the user requests it
    """

    path: Path
    study: str
    storage: str
    objectives: tuple[str, ...]
    directions: tuple[Direction, ...]
    dimensions: tuple[Dimension, ...]
    base: Experiment
    n_trials: int | None
    grid: bool
    best_logs_model: bool
    sampler_spec: str | dict[str, Any] | None
    pruner_spec: str | dict[str, Any] | None

    @property
    def objective(self) -> str:
        """The first of the objectives."""
        return self.objectives[0]

    @property
    def direction(self) -> Direction:
        """Its direction."""
        return self.directions[0]

    @property
    def judged_by(self) -> str:
        """The objectives and their directions in words."""
        return ", ".join(f"{name} ({way})" for name, way in zip(self.objectives, self.directions, strict=True))

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each key."""
        return {dimension.key: dimension.distribution for dimension in self.dimensions}

    def points(self) -> list[dict[str, Any]]:
        """The grid, in the file's order with the last key changing fastest, limited to ``n_trials``."""
        lists = [dimension.points() for dimension in self.dimensions]
        count = math.prod(len(values) for values in lists)
        if count > MAX_POINTS:
            raise SweepError(f"the grid has {count} points: use fewer values, or a sampler with n_trials")
        keys = [dimension.key for dimension in self.dimensions]
        found = [dict(zip(keys, point, strict=True)) for point in itertools.product(*lists)]
        return found if self.n_trials is None else found[: self.n_trials]

    @property
    def total(self) -> int:
        """Planned number of trials."""
        return len(self.points()) if self.grid or self.n_trials is None else self.n_trials

    def sampler(self) -> BaseSampler:
        """The sampler that chooses points if there is no grid."""
        return optuna.samplers.RandomSampler() if self.grid else _instance(BaseSampler, self.sampler_spec, "sampler")

    def pruner(self) -> BasePruner:
        """The pruner; one that never prunes by default."""
        if self.pruner_spec is None:
            return optuna.pruners.NopPruner()
        return _instance(BasePruner, self.pruner_spec, "pruner")

    @cached_property
    def first(self) -> Experiment:
        """The experiment at the first point, to check before any training whether the space is valid."""
        point = {dimension.key: dimension.first for dimension in self.dimensions}
        return changed(self.base, {**self.changes(point), "trainer.devices": 1}, "space")

    def changes(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The changes of a point: dotted key to value."""
        return {dimension.key: dimension.value(point[dimension.key]) for dimension in self.dimensions}

    def described(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration at a point as written in the sweep's file, whether valid or not."""
        config = self.base.config
        for key, value in self.changes(point).items():
            put(config, key, value)
        return config

    def best_config(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration of a fit at a point, for the user's further work."""
        name = {"tracking.run_name": f"{self.study} best", "tracking.log_model": self.best_logs_model}
        return self.base.but({**self.changes(point), **name}).config

    def trial(self, point: Mapping[str, Any], run_name: str) -> Experiment:
        """The experiment of a trial.

        Raises:
            UserError: the point has a value that cannot be used
        """
        own = {"tracking.run_name": run_name, "tracking.description": None}
        # with `auto` a trial would use all GPUs, with a process for each
        return self.base.but({**self.changes(point), **own, "trainer.devices": 1})

    def short_names(self) -> dict[str, str]:
        """The shortest unique ending of each key: ``lr`` for ``model.optimizer.init_args.lr``."""
        short = {}
        for dimension in self.dimensions:
            parts = dimension.key.split(".")
            others = [other.key for other in self.dimensions if other.key != dimension.key]
            endings = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
            short[dimension.key] = next(
                (end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others)), dimension.key
            )
        return short

    def label(self, point: Mapping[str, Any]) -> str:
        """A point in words: ``lr 1e-3, batch_size 8, BCELoss``."""
        short = self.short_names()
        by_key = {dimension.key: dimension for dimension in self.dimensions}
        return ", ".join(
            by_key[key].label(value) if by_key[key].names_itself else f"{short[key]} {by_key[key].label(value)}"
            for key, value in point.items()
        )

    def identity(self) -> dict[str, str]:
        """Everything that determines the results, as a flat mapping; a study belongs to one such identity."""
        known = {
            key: str(value)
            for key, value in flatten(self.base.config)
            if not any(key == own or key.startswith(f"{own}.") for own in _OF_THE_MACHINE)
            and key not in self.distributions
        }
        spaces = {
            f"space.{key}": json.dumps([*json.loads(distribution_to_json(distribution)).values()], sort_keys=True)
            for key, distribution in self.distributions.items()
        }
        judged = {"objective": ", ".join(self.objectives), "direction": ", ".join(self.directions)}
        return {**known, **spaces, **judged}


def read_plan(path: Path, options: Sequence[str], study: str | None = None, storage: str | None = None) -> Plan:
    """Read a sweep's file.

    Args:
        path: the file
        options: options of `bustseg fit` that every trial has
        study, storage: replace those in the file

    Raises:
        SweepError: the file, its space or its sampler cannot be used
        UserError: the fit's config cannot be used
    """
    file = _read(path)
    if not file.space:
        raise SweepError(f"{path} has an empty space: name config keys and their values")
    dimensions = tuple(Dimension.parse(key, spec) for key, spec in file.space.items())
    name = file.sampler.get("class_path", "") if isinstance(file.sampler, dict) else file.sampler or GRID_SAMPLERS[0]
    grid = str(name).rpartition(".")[2] in GRID_SAMPLERS
    if not grid and file.n_trials is None:
        raise SweepError(f"{path} has no n_trials, which every sampler except the grid needs")
    if file.n_trials is not None and file.n_trials < 1:
        raise SweepError(f"n_trials is {file.n_trials}: it must be at least 1")
    objectives, directions = _judgement(file, path)
    base = _base(path, file, options)
    logs_model = base["tracking.log_model"]
    if not logs_model:
        logs_model = file.overrides.get("tracking.log_model", _stated(path.parent / file.config, "tracking.log_model"))
    plan = Plan(
        path=path,
        study=study or file.study or path.stem,
        storage=storage or file.storage or os.environ.get("OPTUNA_STORAGE") or "sqlite:///mlruns/optuna.db",
        objectives=objectives,
        directions=directions,
        dimensions=dimensions,
        base=base,
        n_trials=file.n_trials,
        grid=grid,
        best_logs_model=logs_model,
        sampler_spec=file.sampler,
        pruner_spec=file.pruner,
    )
    _one_device(plan)
    _ = plan.first
    plan.pruner()
    _try_sampler(plan)
    return plan


def _judgement(file: SweepFile, path: Path) -> tuple[tuple[str, ...], tuple[Direction, ...]]:
    """The objectives and the direction of each.

    Raises:
        SweepError: their numbers differ, one is listed twice, or there are several with a pruner
    """
    objectives = tuple(file.objective) if isinstance(file.objective, list) else (file.objective,)
    directions = tuple(file.direction) if isinstance(file.direction, list) else (file.direction,)
    if len(objectives) != len(directions) or not objectives:
        raise SweepError(
            f"{path} has {len(objectives)} objectives and {len(directions)} directions: give a direction for each"
        )
    if len(set(objectives)) < len(objectives):
        raise SweepError(f"{path} has an objective twice: {', '.join(objectives)}")
    if len(objectives) > 1 and file.pruner is not None:
        raise SweepError(
            f"{path} has a pruner, but Optuna can prune only with a single objective: leave out the pruner or the "
            "other objectives"
        )
    return objectives, directions


def _read(path: Path) -> SweepFile:
    if not path.is_file():
        raise SweepError(f"no sweep file at {path}")
    text, _ = read_yaml(path)
    # jsonargparse's YAML, which reads 1e-5 as a number, as in fit configs
    content = get_loader("yaml")(text)
    if not isinstance(content, dict):
        raise SweepError(f"{path} does not hold a sweep: see configs/sweeps/paper_grid.yaml for an example")
    known = list(SweepFile.__dataclass_fields__)
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f": did you mean `{close[0]}`?" if close else f": there are {', '.join(known)}"
            raise SweepError(f"unknown key `{key}` in {path}{hint}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SweepFile, "sweep")
    content["space"] = content.get("space") or {}
    try:
        # parsed but not instantiated: a class among the choices stays a class_path
        return SweepFile(**parser.parse_object({"sweep": content}).as_dict()["sweep"])
    except (ArgumentError, TypeError, ValueError) as error:
        raise SweepError(f"{path}: {_flat(error)}") from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).replace("sweep.", "").split())[:400]


def _base(path: Path, file: SweepFile, options: Sequence[str]) -> Experiment:
    """The experiment of every trial: the fit's config with the file's overrides and the options of the command.

    Raises:
        UserError: one of them cannot be used
    """
    fit = path.parent / file.config
    overrides = {"tracking.log_model": False, **file.overrides}
    try:
        return Experiment.read_changed(fit, overrides, options)
    except UserError:
        # one by one, since an error from a joint parse would not show its source
        return changed(Experiment.read(fit), overrides, "overrides").with_options(options)


def _stated(path: Path, key: str) -> Any:
    """The value of a dotted key in a config file, or its default."""
    _, content = read_yaml(find_config(path))
    return {**dict(flatten(defaults())), **dict(flatten(content))}[key]


def changed(experiment: Experiment, changes: Mapping[str, Any], where: str) -> Experiment:
    """The experiment with changes from the section ``where`` of the sweep's file.

    Raises:
        UserError: they are not valid; an unknown key is named with a suggestion
    """
    try:
        return experiment.but(changes)
    except UserError as error:
        known_keys = experiment.all_keys()
        for key in changes:
            unknown = isinstance(error, UnknownKeyError) and error.key == key
            if key not in known_keys and (unknown or _beside_a_class(key, known_keys)):
                hint = _did_you_mean(key, [known for known in known_keys if known not in changes])
                raise SweepError(f"{where} has the key `{key}`, which `fit` does not know{hint}") from error
        raise


def _beside_a_class(key: str, known: Sequence[str]) -> bool:
    """Whether a key is meant as an argument of a class, but lacks ``init_args``: ``model.optimizer.lr``."""
    parent, _, leaf = key.rpartition(".")
    return f"{parent}.class_path" in known and leaf not in ("class_path", "init_args", "dict_kwargs")


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    by_leaf: dict[str, list[str]] = {}
    for one in known:
        by_leaf.setdefault(one.rpartition(".")[2], []).append(one)
    leaf = key.rpartition(".")[2]
    close = [one for name in difflib.get_close_matches(leaf, by_leaf, n=2) for one in by_leaf[name]]
    close = difflib.get_close_matches(key, close, n=2, cutoff=0)
    return f": did you mean {' or '.join(f'`{one}`' for one in close)}?" if close else ""


def _one_device(plan: Plan) -> None:
    devices = plan.base["trainer.devices"]
    several = devices > 1 if isinstance(devices, int) else isinstance(devices, list) and len(devices) > 1
    if several or plan.base["trainer.num_nodes"] > 1:
        raise SweepError(
            f"a trial runs on one device, but trainer.devices is {devices}: leave it out, and use --workers to use "
            "more devices"
        )


def _instance(base: type, spec: Any, what: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=base)
    try:
        return parser.instantiate(parser.parse_object({"it": spec})).it
    except Exception as error:  # an error of jsonargparse, or of the class itself
        name = spec.get("class_path") if isinstance(spec, dict) else spec
        module = optuna.samplers if base is BaseSampler else optuna.pruners
        ending = base.__name__.removeprefix("Base")
        known = [one for one in module.__all__ if one.endswith(ending) and not one.startswith("Base")]
        if name not in known and str(name).rpartition(".")[2] not in known:
            known = difflib.get_close_matches(str(name).rpartition(".")[2], known, n=1, cutoff=0.8) or known
            raise SweepError(f"unknown {what} {name}: Optuna has {', '.join(known)}") from error
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
        raise SweepError(f"{what} {name}: {lines[-1] if lines else type(error).__name__}") from error


def _try_sampler(plan: Plan) -> None:
    """Draw a few points in an in-memory study: a missing package or an unsuitable space is found now, in seconds."""
    if plan.grid:
        plan.points()
        return
    study = optuna.create_study(sampler=plan.sampler(), directions=plan.directions)
    try:
        for value in range(3):
            trial = study.ask(plan.distributions)
            study.tell(trial, [float(value)] * len(plan.objectives))
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise SweepError(f"the sampler cannot search this space: {lines[0]}") from error
