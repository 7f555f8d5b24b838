"""The training verbs: a LightningCLI whose defaults are the paper's protocol."""

from __future__ import annotations

import copy
import ctypes
import difflib
import json
import logging
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from bustseg.callbacks import (
    BestCheckpoint,
    EpochLines,
    ExplainCallback,
    FrozenFeatures,
    ImageTables,
    Interrupts,
    LastCheckpoint,
    ModelRecorder,
    OperatingPointSearch,
    PredictionPanels,
    RunRecorder,
    TestCurves,
    TestPasses,
    WatchedProgressBar,
)
from bustseg.checkpoint import read_checkpoint, resolve_checkpoint, without_pretrained
from bustseg.data.datamodule import BUSIDataModule
from bustseg.errors import UserError
from bustseg.metrics import CONVENTIONS, overlap_metrics
from bustseg.metrics.registry import score, single_scores, value_of
from bustseg.models.weights import download_error, fail_fast, use_packaged_weights
from bustseg.processes import OneProcessStops, start_processes_with
from bustseg.progress import console
from bustseg.task import RECORD, SegmentationTask
from bustseg.tracking import Tracker, open_store, tracking_uri
from bustseg.trust import allow_arguments, allow_text, building, check_config, own_store, stored_config


def fast_precision() -> str:
    """``bf16-mixed`` where the hardware computes in it, else ``32-true``."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    try:
        capabilities = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return "32-true"
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))
    return "bf16-mixed" if fast else "32-true"


_UNKNOWN_KEY = re.compile(
    r"Key '([\w.]+)' is not expected|does not accept option '([\w.]+)'|unrecognized arguments?: (\S+)", re.IGNORECASE
)
"""jsonargparse's ways to say that a file, a subcommand or the command line has a key that nothing takes."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

_DOWNLOAD_ERRORS = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "HfHubHTTPError", "URLError", "HTTPError")
"""What the hub, timm and torchvision raise, by name: importing their modules only for this would cost a second."""


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step instead of giving each back to the system.

    A training step frees and asks for the same gigabytes again; by default glibc maps and unmaps every large tensor,
    and the kernel clears its pages anew each time (a sixth of a CPU step). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_DESCRIPTIONS = {
    "fit": "Train a network. Example: bustseg fit --config configs/paper/model_01.yaml --data.batch_size 8",
    "validate": "Score a checkpoint on the validation images. Example: bustseg validate --ckpt_path latest",
    "test": "Score a checkpoint on the test images. Example: bustseg test --ckpt_path latest",
}


CALLBACKS: dict[type[pl.Callback], str] = {
    EarlyStopping: "early_stopping",
    BestCheckpoint: "checkpoint",
    TestPasses: "report",
    ExplainCallback: "explain",
    FrozenFeatures: "frozen_features",
}
"""Callbacks with a section of their own in a configuration."""


class _Parser(LightningArgumentParser):
    """Parser whose errors are exceptions, so that the command line can say them in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["exit_on_error"] = False
        super().__init__(*args, **kwargs)


class BustsegCLI(LightningCLI):
    """`bustseg fit / validate / test`: one YAML is one experiment."""

    def __init__(
        self, args: list[str], checkpoint: dict[str, Any] | None = None, run: bool = True, origin: str = ""
    ) -> None:
        self.checkpoint = checkpoint
        self._origin = origin
        self._verb = args[0] if run else None
        descriptions = {verb: {"description": text} for verb, text in _DESCRIPTIONS.items() if verb == self._verb}
        super().__init__(
            SegmentationTask,
            BUSIDataModule,
            save_config_callback=None,
            trainer_defaults={
                "max_epochs": 50,
                "precision": fast_precision(),
                "num_sanity_val_steps": 0,
                # the sampler shards by itself, without counting an evaluation image twice
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "log_every_n_steps": 50,
            },
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": "bustseg", **descriptions},
            args=args,
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the verb that is asked for: each verb's parser takes a tenth of a second, for every trial of a sweep."""
        return {verb: skip for verb, skip in LightningCLI.subcommands().items() if verb == self._verb}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Tracker, "tracking", skip={"run_id"}, instantiate=False)
        for callback, key in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"early_stopping.monitor": "val/loss", "early_stopping.patience": 10})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's configuration came first on the command line, so that the user's words win."""

    def instantiate_classes(self) -> None:
        self._dump_config()
        config = self.config
        if self.checkpoint is not None:
            # the checkpoint brings its weights; what is recorded still says what they were trained from
            self.config = copy.deepcopy(config)
            section = self._section(self.config)
            section.model.network = _as_namespace(without_pretrained(_as_dict(section.model.network)))
            if self._origin:
                check_config(_as_dict(section), self._origin)
        use_packaged_weights()
        with fail_fast(), building(self._origin) if self._origin else nullcontext():
            self.config_init = self.parser.instantiate_classes(self.config)
        self.config = config
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        section = self._section(self.config_init)
        user = section.trainer.logger
        kwargs["logger"] = self._tracker() if user is None or user is True else user
        trainer = super().instantiate_trainer(**kwargs)
        extra: list[pl.Callback] = [RunRecorder(self.config_dump), EpochLines(), OneProcessStops()]
        if self.subcommand == "test":
            extra += [ImageTables(), TestCurves(), PredictionPanels()]
        if self.subcommand == "validate":
            extra.append(OperatingPointSearch())
        # after the others, so that the model card has their figures
        extra.append(ModelRecorder())
        if self.subcommand == "fit":
            extra.append(LastCheckpoint())
        callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.progress_bar_callback is not None:
            # bars fill log files with control characters; there EpochLines says what happens
            callbacks.remove(trainer.progress_bar_callback)
            if console.is_terminal:
                extra.append(WatchedProgressBar())
        # Lightning keeps checkpoints last, so that they see what the other callbacks have done
        callbacks = trainer._callback_connector._reorder_callbacks([*callbacks, *extra])
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        return trainer

    def _section(self, config: Namespace) -> Namespace:
        """The verb's part of a configuration; all of it when there is no verb."""
        return config[self.subcommand] if self.subcommand else config

    def _tracker(self) -> Tracker | bool:
        section = self._section(self.config)
        if section.trainer.fast_dev_run:
            return False
        options = self.tracking_options
        if self.checkpoint and options["uri"] == self.checkpoint[RECORD]["config"].get("tracking", {}).get("uri"):
            options["uri"] = own_store(options["uri"], self._origin)
        # MLflow's random names repeat, since the training's seed seeds them too
        options["run_name"] = options["run_name"] or self.default_name()
        run_id, keep = self._run_to_continue(options.get("uri"))
        tracker = Tracker(**options, run_id=run_id)
        if run_id is not None:
            if keep:
                tracker.final_status = tracker.status
        elif self.checkpoint is not None:
            tracker.tags = {
                **(tracker.tags or {}),
                "checkpoint_of_run": self.checkpoint[RECORD].get("run_id", "unknown"),
            }
        return tracker

    @property
    def tracking_options(self) -> dict[str, Any]:
        """The `tracking` section of the configuration."""
        section = self._section(self.config)
        return dict(_as_dict(section.tracking))

    def default_name(self) -> str:
        """Name of a run that the user has not named: of the config or network, and the time."""
        configs = [Path(str(path)).stem for path in self.config[self.subcommand].get("config") or []]
        name = configs[-1] if configs and self.checkpoint is None else type(self.model.network).__name__
        return f"{name} {datetime.now():%Y-%m-%d %H:%M}"

    def _run_to_continue(self, uri: str | None) -> tuple[str | None, bool]:
        """Run that a checkpoint belongs to, if its store has it and the data are the same; whether to keep its status.

        Scores on other data than the run was trained for get a run of their own.
        """
        run_id = (self.checkpoint or {}).get(RECORD, {}).get("run_id")
        if run_id is None:
            return None, False
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        store = tracking_uri(uri)
        open_store(store)
        try:
            run = MlflowClient(store).get_run(run_id)
        except MlflowException:
            return None, False
        if run.info.lifecycle_stage == "deleted":
            return None, False
        if self.subcommand == "fit":
            return run_id, False
        self.datamodule.prepare_data()
        self.datamodule.setup(self.subcommand)
        section = self.checkpoint[RECORD]  # type: ignore[index]
        same = (self.datamodule.data_digest, self.datamodule.split_digest) == (
            section.get("data_digest"),
            section.get("split_digest"),
        )
        return (run_id, True) if same else (None, False)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if "verbose" in kwargs:
            kwargs["verbose"] = False  # the scores are printed by convention, see `_report`
        return kwargs

    def _set_seed(self) -> None:
        with _quiet("lightning.fabric.utilities.seed"):
            super()._set_seed()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _as_dict(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value


def _as_namespace(value: Any) -> Any:
    if isinstance(value, dict):
        return Namespace({key: _as_namespace(item) if key == "init_args" else item for key, item in value.items()})
    return value


def one_value(args: list[str], option: str) -> tuple[str | None, list[str]]:
    """Value of ``option`` in ``args`` (both ``--x v`` and ``--x=v``) and the arguments without it."""
    rest, value = [], None
    items = iter(args)
    for item in items:
        if item == option:
            value = next(items, None)
        elif item.startswith(option + "="):
            value = item.partition("=")[2]
        else:
            rest.append(item)
    return value, rest


def _explain_parse_error(error: Exception) -> UserError:
    """One line for what jsonargparse says in several."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        if type(cause).__name__ in _DOWNLOAD_ERRORS:
            return download_error("the network's encoder", cause)  # type: ignore[arg-type]
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if missing := re.search(r"arguments are required: (?:fit|validate|test)?\.?(\S+)", text):
        return UserError(f"no {missing[1]}: name a config (--config configs/quickstart.yaml) or give --{missing[1]}")
    unknown = _UNKNOWN_KEY.search(text)
    if unknown:
        key = next(group for group in unknown.groups() if group).lstrip("-").partition("=")[0]
        return UserError(f"unknown config key `{key}`{_did_you_mean(key)}")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    return UserError(" ".join(dict.fromkeys(lines))[:600])


def _did_you_mean(key: str) -> str:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.add_lightning_class_args(SegmentationTask, "model")
    parser.add_lightning_class_args(BUSIDataModule, "data")
    parser.add_class_arguments(Tracker, "tracking")
    for callback, section in CALLBACKS.items():
        parser.add_lightning_class_args(callback, section)
    known = [action.dest for action in parser._actions]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    return f": did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ": see `bustseg fit --help`"


def build_cli(verb: str | None, args: list[str]) -> BustsegCLI:
    """Parse the arguments of a training verb and make its objects, but run nothing.

    ``--ckpt_path`` may name a file, a run id, ``runs:/RUN_ID`` or ``latest``; the checkpoint's own configuration
    then stands before the given configs and options, so that it is enough alone and anything named beside it wins.

    Raises:
        UserError: a config, key or value that cannot be used
    """
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric.utilities.distributed",
        "timm.models._builder",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    _check_configs(args)
    named, rest = one_value(args, "--ckpt_path")
    if named is None and verb in ("validate", "test") and not {"--help", "-h", "--print_config"} & set(args):
        raise UserError(f"`bustseg {verb}` needs trained weights: give --ckpt_path FILE, a run id, runs:/ID or latest")
    checkpoint, origin = None, ""
    with tempfile.TemporaryDirectory() as folder:
        if named is not None and verb is not None:
            path = resolve_checkpoint(named, prefer="last" if verb == "fit" else "best")
            checkpoint, origin = read_checkpoint(path), str(path)
            check_config(checkpoint[RECORD]["config"], origin)
            if verb == "fit" and "optimizer_states" not in checkpoint:
                raise UserError(f"{path} holds weights only and cannot be continued: name the run's last.ckpt")
            stored = Path(folder) / "checkpoint.yaml"
            stored.write_text(yaml.safe_dump(_stored_config(checkpoint, verb)))
            args = [*rest, "--ckpt_path", str(path)]  # for other processes: this file, not what `latest` is by then
            rest = ["--config", str(stored), *rest, "--ckpt_path", str(path)]
        try:
            with stored_config(origin) if origin else nullcontext():
                cli = _PreparedCLI([*([verb] if verb else []), *rest], checkpoint, run=verb is not None, origin=origin)
        except (ArgumentError, TypeError, ValueError, AttributeError, ImportError, LookupError, OSError) as error:
            raise _explain_parse_error(error) from error
    if verb is not None:
        start_processes_with(cli.trainer, [verb, *args])
    return cli


class _ParsedCLI(BustsegCLI):
    """A CLI that fills in the defaults and makes nothing."""

    def instantiate_classes(self) -> None:
        self._dump_config()

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def resolve_config(args: list[str]) -> dict[str, Any]:
    """Whole configuration of a fit as plain types, defaults filled in; nothing is made or looked up.

    Raises:
        UserError: a config, key or value that cannot be used
    """
    _check_configs(args)
    try:
        config = _ParsedCLI(["fit", *args]).config_dump
    except (ArgumentError, TypeError, ValueError, AttributeError, ImportError, LookupError, OSError) as error:
        raise _explain_parse_error(error) from error
    return {key: value for key, value in config.items() if key not in ("config", "ckpt_path", "weights_only")}


def _check_configs(args: list[str]) -> None:
    """Look at config files before the parser does, whose message does not name the file.

    What they and the other arguments name is the user's own word, see :mod:`bustseg.trust`.
    """
    allow_arguments(args)
    for path in (args[i + 1] for i, item in enumerate(args[:-1]) if item in ("--config", "-c")):
        if not Path(path).is_file():
            raise UserError(f"no config file at {path}")
        try:
            text = Path(path).read_text()
            content = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no configuration: see configs/quickstart.yaml for one")
        allow_text(text)


class _PreparedCLI(BustsegCLI):
    """A CLI that makes everything and leaves running it to the caller."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet, see `train`."""


def _stored_config(checkpoint: dict[str, Any], verb: str) -> dict[str, Any]:
    """The part of a checkpoint's configuration that a verb starts from.

    A fit goes on exactly as it was set up; a test may run on another machine, so only the precision is taken over.
    """
    config = {key: value for key, value in checkpoint[RECORD]["config"].items() if key not in ("config", "ckpt_path")}
    if verb != "fit":
        trainer = config.get("trainer", {})
        config = {
            key: config[key]
            for key in ("seed_everything", "model", "data", "report", "explain", "tracking")
            if key in config
        }
        if trainer.get("precision"):
            config["trainer"] = {"precision": trainer["precision"]}
    config.pop("weights_only", None)
    return config


def train(verb: str, args: list[str]) -> int:
    """Run `fit`, `validate` or `test` with command-line arguments; returns the exit code."""
    run_verb(verb, args)
    return 0


def run_verb(
    verb: str,
    args: list[str],
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> BustsegCLI:
    """Run `fit`, `validate` or `test` and return what it was run with: trainer (its metrics), model, data.

    Args:
        tags: further tags of the MLflow run
        callbacks: further callbacks, which come before the others

    Raises:
        KeyboardInterrupt: the user stopped it
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
    cli = build_cli(verb, args)
    if tags and isinstance(cli.trainer.logger, Tracker):
        cli.trainer.logger.tags = {**(cli.trainer.logger.tags or {}), **tags}
    interrupts = Interrupts()
    cli.trainer.callbacks = [interrupts, *callbacks, *cli.trainer.callbacks]  # type: ignore[attr-defined]
    # before the run begins, so that data that cannot be used leave no run behind
    cli.datamodule.prepare_data()
    cli.datamodule.setup(verb)
    if verb != "fit":
        cli.config_init[verb].verbose = False  # the table below says each number's convention
    try:
        with interrupts:
            LightningCLI._run_subcommand(cli, verb)
    except SystemExit as error:  # Lightning's answer to Ctrl-C, which a caller with more runs to come has to know
        raise KeyboardInterrupt from error
    _report(cli, verb)
    return cli


def _report(cli: BustsegCLI, verb: str) -> None:
    """What a person wants to know at the end: scores with their convention, where things are, what comes next."""
    trainer = cli.trainer
    if not trainer.is_global_zero:
        return
    tracker = trainer.logger
    if verb != "fit":
        _print_scores(trainer.callback_metrics, verb if verb == "test" else "val")
    if not isinstance(tracker, Tracker):
        return
    lines = [f"run {tracker.run_id}  experiment {tracker._experiment_name}  store {tracker.store.shown}"]
    if tracker.artifact_dir is not None:
        if verb == "test":
            lines.append(f"pictures, curves and tables in {tracker.artifact_dir}")
        if verb == "fit":
            lines.append(f"checkpoint {tracker.artifact_dir / 'checkpoints' / 'best.ckpt'}")
    if verb == "fit":
        lines.append(f"next: bustseg test --ckpt_path {tracker.run_id}")
    lines.append("look at it: bustseg ui")
    for line in lines:
        console.print(line, highlight=False)


def _print_scores(metrics: dict[str, Any], stage: str) -> None:
    from rich.table import Table

    table = Table(title=f"{stage}: one row per convention (what an image with an empty mask counts)")
    scores = {name.removeprefix(f"{stage}/"): float(value) for name, value in metrics.items()}
    overlap = overlap_metrics()
    for column in ("convention", *(metric.title for metric in overlap)):
        table.add_column(column)
    for convention in CONVENTIONS:
        cells = (metric.text(value_of(scores, f"{metric.name}_{convention}")) for metric in overlap)
        table.add_row(convention, *(cell or "-" for cell in cells))
    console.print(table)
    for name in single_scores(scores):
        if score(name).metric.name != "loss":
            console.print(f"{name} {score(name).metric.text(scores[name])}", highlight=False)


def summary(args: list[str]) -> int:
    """`bustseg summary`: counts of a config's network, with no weights and no data at hand."""
    as_json = "--json" in args
    args = [item for item in args if item != "--json"]
    cli = _summary_cli(args)
    from bustseg.summary import print_summary, summarise

    result = summarise(cli.model.network, cli.datamodule.image_size, channels=len(cli.model.scale.flatten()))
    result["name"] = cli.config.tracking.run_name or type(cli.model.network).__name__
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print_summary(result)
    return 0


def untrained(config: Path) -> tuple[SegmentationTask, dict[str, Any]]:
    """The task of a config file with random weights, and its whole configuration; needs no data.

    Raises:
        UserError: a config that cannot be used
    """
    cli = _summary_cli(["--config", str(config)])
    return cli.model.eval(), cli.config_dump


def _summary_cli(args: list[str]) -> _SummaryCLI:
    _check_configs(args)
    try:
        return _SummaryCLI(args)
    except (ArgumentError, TypeError, ValueError, AttributeError, ImportError, LookupError, OSError) as error:
        raise _explain_parse_error(error) from error


class _SummaryCLI(BustsegCLI):
    """Makes the network without pretrained weights, and neither store nor trainer."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, checkpoint={}, run=False)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None
