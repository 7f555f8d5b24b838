"""What a sweep is: its file, the space that it searches, and the fit that each point stands for."""

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
"""Samplers that mean every point of the space once. Optuna's own may run a point twice under several workers."""

MAX_POINTS = 10_000

# what a machine may differ in without being another experiment
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
        overrides: dotted config key -> value that every trial has
        objective: metric that a trial is judged by, in its best epoch; or a list of them, of which the first decides
            what the best epoch is and the others may be costs too, such as ``latency_ms``
        direction: ``maximize`` or ``minimize``, or a list with one for each objective
        study: name of the study; the file's own when not given
        storage: Optuna storage; ``OPTUNA_STORAGE`` or ``sqlite:///mlruns/optuna.db`` when not given
        n_trials: number of trials; the whole grid when not given
        sampler: class path, or mapping with ``class_path`` and ``init_args``; the grid when not given
        pruner: the same; none when not given
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
    """One config key that is searched.

    Attributes:
        key: dotted config key, which is also the parameter's name in Optuna
        distribution: its values as Optuna knows them
        decoded: value for each of Optuna's choices that is not itself the value (lists and mappings, kept as JSON)
    """

    key: str
    distribution: BaseDistribution
    decoded: Mapping[str, Any]

    @classmethod
    def parse(cls, key: str, spec: Any) -> Dimension:
        """Read the file's words for it.

        Raises:
            SweepError: they cannot be understood
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
            raise SweepError(f"space of {key}: a choice stands there twice")
        return cls(key, CategoricalDistribution(choices), decoded)

    @property
    def first(self) -> Any:
        """A value of it, as Optuna knows it."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return choices[0]
            case IntDistribution(low=low) | FloatDistribution(low=low):
                return low

    def value(self, chosen: Any) -> Any:
        """Config value of what Optuna chose."""
        return copy.deepcopy(self.decoded[chosen]) if chosen in self.decoded else chosen

    @cached_property
    def labels(self) -> dict[Any, str]:
        """Words for each choice of a dimension that has choices.

        A loss is ``BCELoss``, or ``HybridLoss(alpha 0.3)`` with the arguments that differ where its class stands there
        twice.
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
        """Whether its labels need no name before them, since each choice is a class."""
        values = [self.value(choice) for choice in self.labels]
        return bool(values) and all(isinstance(value, Mapping) and "class_path" in value for value in values)

    def label(self, chosen: Any) -> str:
        """Words for what Optuna chose."""
        return self.labels.get(chosen) or _label(chosen)

    def points(self) -> list[Any]:
        """All values of a finite dimension, as Optuna knows them.

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
                # as many digits as a config has, so that 0.2 + 2 * 0.1 is 0.4
                return [round(low + index * step, 12) for index in range(min(steps, MAX_POINTS) + 1)]
        raise SweepError(f"space of {self.key}: a grid needs choices or a step here; or name another sampler")


def _where_it_differs(value: Any, alike: Sequence[Any]) -> Any:
    """A class with those of its arguments alone that are not the same in all of ``alike``; for :func:`_label`."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    every = [other.get("init_args") or {} for other in alike if isinstance(other, Mapping)]
    own = value.get("init_args") or {}
    differing = {key: item for key, item in own.items() if any(other.get(key) != item for other in every)}
    return {"class_path": value["class_path"], "shown": differing}


def _label(value: Any) -> str:
    """A config value in a word or two: ``1e-4``, ``BCELoss``, ``resnet18 + densenet121``."""
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
        objectives: metrics that a trial is judged by, in its best epoch, which is that of the first
        directions: ``maximize`` or ``minimize`` for each
        dimensions: what is searched
        base: what every trial trains, before a point is put in
        n_trials: number of trials; None for the whole grid
        grid: whether every point is run once
        best_logs_model: what ``best_config.yaml`` says of MLflow models; the trials of a sweep leave none unless its
            file or the user says so
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
        """The grid, in the file's order; the last key changes fastest. Cut to ``n_trials``."""
        lists = [dimension.points() for dimension in self.dimensions]
        count = math.prod(len(values) for values in lists)
        if count > MAX_POINTS:
            raise SweepError(f"the grid has {count} points: take fewer values, or a sampler with n_trials")
        keys = [dimension.key for dimension in self.dimensions]
        found = [dict(zip(keys, point, strict=True)) for point in itertools.product(*lists)]
        return found if self.n_trials is None else found[: self.n_trials]

    @property
    def total(self) -> int:
        """Number of trials that the sweep is to have."""
        return len(self.points()) if self.grid or self.n_trials is None else self.n_trials

    def sampler(self) -> BaseSampler:
        """The sampler by which points are chosen that are not given by a grid."""
        return optuna.samplers.RandomSampler() if self.grid else _instance(BaseSampler, self.sampler_spec, "sampler")

    def pruner(self) -> BasePruner:
        """The pruner, which never prunes when none is named."""
        if self.pruner_spec is None:
            return optuna.pruners.NopPruner()
        return _instance(BasePruner, self.pruner_spec, "pruner")

    @cached_property
    def first(self) -> Experiment:
        """The trial at the first point, which shows before any training whether the space can be used."""
        point = {dimension.key: dimension.first for dimension in self.dimensions}
        return changed(self.base, {**self.changes(point), "trainer.devices": 1}, "space")

    def changes(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a point changes: dotted key to its value."""
        return {dimension.key: dimension.value(point[dimension.key]) for dimension in self.dimensions}

    def described(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration at a point as the sweep's file says it, whether it can be used or not."""
        config = self.base.config
        for key, value in self.changes(point).items():
            put(config, key, value)
        return config

    def best_config(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration of a fit at a point, for the user to go on with."""
        name = {"tracking.run_name": f"{self.study} best", "tracking.log_model": self.best_logs_model}
        return self.base.but({**self.changes(point), **name}).config

    def trial(self, point: Mapping[str, Any], run_name: str) -> Experiment:
        """What a trial trains.

        Raises:
            UserError: the point has a value that cannot be used
        """
        own = {"tracking.run_name": run_name, "tracking.description": None}
        # `auto` would take all GPUs, and each of the processes for them this trial
        return self.base.but({**self.changes(point), **own, "trainer.devices": 1})

    def short_names(self) -> dict[str, str]:
        """Each key's shortest ending that no other key has: ``lr`` for ``model.optimizer.init_args.lr``."""
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
        """What decides the results, flat; a study belongs to one such identity."""
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
        study, storage: take the place of the file's own

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
        raise SweepError(f"{path} has no n_trials, which every sampler but the grid needs")
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
        SweepError: their numbers differ, one stands there twice, or they are several and there is a pruner
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
        raise SweepError(f"{path} has a pruner, but Optuna prunes with one objective only: leave one of the two out")
    return objectives, directions


def _read(path: Path) -> SweepFile:
    if not path.is_file():
        raise SweepError(f"no sweep file at {path}")
    text, _ = read_yaml(path)
    # jsonargparse's YAML, which takes 1e-5 for a number as fit configs do
    content = get_loader("yaml")(text)
    if not isinstance(content, dict):
        raise SweepError(f"{path} holds no sweep: see configs/sweeps/paper_grid.yaml for one")
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
        # parsed and not instantiated: a class among the choices stays its class_path
        return SweepFile(**parser.parse_object({"sweep": content}).as_dict()["sweep"])
    except (ArgumentError, TypeError, ValueError) as error:
        raise SweepError(f"{path}: {_flat(error)}") from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).replace("sweep.", "").split())[:400]


def _base(path: Path, file: SweepFile, options: Sequence[str]) -> Experiment:
    """What every trial trains: the fit's config with the file's overrides and the options of the command.

    Raises:
        UserError: one of them cannot be used
    """
    fit = path.parent / file.config
    overrides = {"tracking.log_model": False, **file.overrides}
    try:
        return Experiment.read_changed(fit, overrides, options)
    except UserError:
        # one by one, since what was parsed together does not say whose word it was
        return changed(Experiment.read(fit), overrides, "overrides").with_options(options)


def _stated(path: Path, key: str) -> Any:
    """The value of a dotted key in a config file, or its default."""
    _, content = read_yaml(find_config(path))
    return {**dict(flatten(defaults())), **dict(flatten(content))}[key]


def changed(experiment: Experiment, changes: Mapping[str, Any], where: str) -> Experiment:
    """The experiment with changes that the sweep's file names in its section ``where``.

    Raises:
        UserError: they cannot be made; a key that is none is named with what it may have meant
    """
    try:
        return experiment.but(changes)
    except UserError as error:
        known_keys = experiment.all_keys()
        for key in changes:
            unknown = isinstance(error, UnknownKeyError) and error.key == key
            if key not in known_keys and (unknown or _beside_a_class(key, known_keys)):
                hint = _did_you_mean(key, [known for known in known_keys if known not in changes])
                raise SweepError(f"{where} names `{key}`, which `fit` does not know{hint}") from error
        raise


def _beside_a_class(key: str, known: Sequence[str]) -> bool:
    """Whether a key would be an argument of a class, but stands where its path stands: ``model.optimizer.lr``."""
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
            f"a trial runs on one device, but trainer.devices is {devices}: leave it out, and use --workers for more"
        )


def _instance(base: type, spec: Any, what: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=base)
    try:
        return parser.instantiate(parser.parse_object({"it": spec})).it
    except Exception as error:  # jsonargparse's, and whatever the class itself raises
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
    """Ask the sampler for a few points of a study in memory: a missing package or unfit space shows now, in seconds."""
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
