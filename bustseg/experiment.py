"""One experiment: config files and changes to them, resolved once into the whole configuration of a training."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace, get_loader
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser

from bustseg.bounds import read_yaml
from bustseg.callbacks import BestCheckpoint, ExplainCallback, FrozenFeatures, TestPasses
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.transforms import without_own_readers
from bustseg.errors import UnknownKeyError, UserError, causes
from bustseg.models.weights import download_error, fail_fast, use_packaged_weights
from bustseg.presets import find_config
from bustseg.redact import redact
from bustseg.runs.checkpoint import read_checkpoint, without_pretrained
from bustseg.runs.lookup import run_file
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.tracker import Tracker, flatten
from bustseg.task import RECORD, SegmentationTask
from bustseg.trust import allow_arguments, allow_text, building, check_config, stored_config
from bustseg.usual_keys import meant

CALLBACKS: dict[type[pl.Callback], str] = {
    EarlyStopping: "early_stopping",
    BestCheckpoint: "checkpoint",
    TestPasses: "report",
    ExplainCallback: "explain",
    FrozenFeatures: "frozen_features",
}
"""Callbacks with a section of their own in a configuration."""

OF_A_RUN = ("config", "ckpt_path", "weights_only", "verbose")
"""Keys that a config file may have, and that say how one run of the experiment goes, not what it is."""

OF_A_SCORE = ("seed_everything", "model", "data", "report", "explain", "tracking")
"""Sections of a checkpoint's configuration that a test takes over: it may run on another machine than the fit did."""

_DOWNLOAD_ERRORS = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "HfHubHTTPError", "URLError", "HTTPError")
"""What the hub, timm and torchvision raise, by name: importing their modules only for this would cost a second."""

_UNKNOWN_KEY = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option|Key) '(?P<key>[\w.]+)'"
    r"|unrecognized arguments?: -*(?P<option>[\w.-]+)",
    re.IGNORECASE,
)
"""jsonargparse's ways to say that a file or the command line has a key that nothing takes."""

_PARSED_KEY = re.compile(r'key "([^"]+)":')
"""How it names the key whose value it could not use."""

_UNKNOWN_ARGUMENT = re.compile(r"Option '(?P<argument>[\w.]+)' is not accepted")
"""How it says so of an argument of a class that a key names."""


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


class _QuotedText(yaml.SafeDumper):
    """Writes texts in quotes: jsonargparse takes ``1e-3`` without them for a number, which PyYAML does not."""


_QuotedText.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


class _Parser(LightningArgumentParser):
    """Parser whose errors are exceptions, so that the command line can say them in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["exit_on_error"] = False
        self.changes: dict[str, Any] = {}
        """Dotted keys that the next config file gets in the place of its own."""
        super().__init__(*args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """The content of a config file, with :attr:`changes`, as a namespace."""
        changes, self.changes = self.changes, {}
        if changes:
            config = get_loader("yaml")(content) or {}
            for key, value in changes.items():
                put(config, key, value)
            content = yaml.dump(config, Dumper=_QuotedText, sort_keys=False)
        return super().parse_string(content, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """What ``--print_config`` shows, without credentials."""
        return redact(self.dump_whole(*args, **kwargs))

    def dump_whole(self, *args: Any, **kwargs: Any) -> str:
        """A configuration as text, credentials included, for this process alone."""
        return super().dump(*args, **kwargs)


def make_parser(prog: str = "bustseg", description: str = "The configuration of an experiment") -> _Parser:
    """A new parser of every key that an experiment has; the defaults are the paper's protocol."""
    parser = _Parser(
        prog=prog,
        description=description,
        dump_header=[f"lightning.pytorch=={pl.__version__}"],
        allow_abbrev=False,  # an option that is cut short is as wrong as a key of a file that is
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="configuration file (YAML); may be repeated")
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="seed of weights, order and augmentation; true for a random one, false for none",
    )
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.add_lightning_class_args(SegmentationTask, "model")
    parser.add_lightning_class_args(UltrasoundDataModule, "data")
    parser.add_class_arguments(Tracker, "tracking", skip={"run_id"}, instantiate=False)
    for callback, section in CALLBACKS.items():
        parser.add_lightning_class_args(callback, section)
    parser.add_argument(
        "--ckpt_path", type=str | None, help="checkpoint file, run id, runs:/ID, models:/NAME@ALIAS or latest"
    )
    parser.add_argument("--weights_only", type=bool | None, help="as in Lightning's Trainer")
    parser.add_argument("--verbose", type=bool | None, help="of no effect: scores are printed by convention")
    parser.set_defaults(
        {
            "trainer.max_epochs": 50,
            "trainer.precision": fast_precision(),
            "trainer.num_sanity_val_steps": 0,
            # the sampler shards by itself, without counting an evaluation image twice
            "trainer.use_distributed_sampler": False,
            "trainer.enable_model_summary": False,
            "trainer.log_every_n_steps": 50,
            "early_stopping.monitor": "val/loss",
            "early_stopping.patience": 10,
        }
    )
    return parser


@cache
def _parser() -> _Parser:
    """The parser of this process: making it takes a tenth of a second."""
    return make_parser()


def defaults() -> dict[str, Any]:
    """The configuration of an experiment that says nothing, nested; the trainer's precision is this machine's."""
    return _parser().get_defaults().as_dict()


class Experiment:
    """The whole configuration of a training, parsed and checked, with nothing made of it yet.

    An experiment does not change; :meth:`but` and :meth:`with_options` derive others.

    Example:
        >>> experiment = Experiment.read("configs/quickstart.yaml")  # doctest: +SKIP
        >>> experiment.but(lr=1e-3, max_epochs=5)["trainer.max_epochs"]  # doctest: +SKIP
        5

    Args:
        namespace: what the parser made of the configuration
        name: name of the last config file, without its ending; None when there was none
        origin: file or run whose stored configuration it began with; empty when the user has written all of it
        overrides: options beside the config files that it was made with, key to value, as they were typed
    """

    def __init__(
        self,
        namespace: Namespace,
        name: str | None = None,
        origin: str = "",
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self._namespace = namespace
        self.name = name
        self.origin = origin
        self.overrides = dict(overrides or {})

    @classmethod
    def parse(cls, options: Sequence[str], base: Experiment | None = None) -> Experiment:
        """An experiment from options as on the command line: ``["--config", "x.yaml", "--data.batch_size", "8"]``.

        Args:
            options: later ones win
            base: what they change; the defaults when not given

        Raises:
            UserError: a config file, key or value that cannot be used
        """
        options = with_shipped_configs(options)
        check_files(options)
        with _guarded(base.origin if base else ""):
            namespace = _parser().parse_args(list(options), namespace=base._namespace if base else None)  # noqa: SLF001 (its own class)
        files = [Path(str(path)).stem for path in namespace.pop("config", None) or []]
        name = files[-1] if files else base.name if base else None
        return cls(namespace, name, base.origin if base else "", _overrides(options))

    @classmethod
    def read(cls, *files: str | Path) -> Experiment:
        """An experiment from config files, of which later ones win.

        Raises:
            UserError: a file that cannot be used
        """
        return cls.parse([option for file in files for option in ("--config", str(Path(file).expanduser()))])

    @classmethod
    def read_changed(cls, file: str | Path, changes: Mapping[str, Any], options: Sequence[str] = ()) -> Experiment:
        """What ``read(file).but(changes).with_options(options)`` gives, parsed once where the file lets it.

        Args:
            file: a config file
            changes: dotted key to its value, as :meth:`but` takes them
            options: later ones win

        Raises:
            UserError: something of them cannot be used; the steps one by one tell what
        """
        read_file = ["--config", str(Path(file).expanduser())]
        _, content = read_yaml(find_config(read_file[1]))
        if any(_needs_resolving(content, key) for key in changes):
            return cls.parse(read_file).but(changes).with_options(options)
        parser = _parser()
        parser.changes = copy.deepcopy({**changes})
        try:
            return cls.parse([*read_file, *options])
        finally:
            parser.changes = {}

    @classmethod
    def of_config(cls, config: Mapping[str, Any], name: str | None = None, origin: str = "") -> Experiment:
        """An experiment from a configuration as :attr:`config` gives it; what it leaves out has its default.

        Raises:
            UserError: a key or value that cannot be used
        """
        if origin:
            check_config(config, origin)
        own = {key: without_own_readers(value) for key, value in config.items() if key not in OF_A_RUN}
        with _guarded(origin):
            namespace = _parser().parse_object(own)
        return cls(namespace, name, origin)

    @classmethod
    def of_checkpoint(cls, path: Path, verb: str = "fit", options: Sequence[str] = ()) -> Experiment:
        """The experiment that a checkpoint was trained by.

        Args:
            path: the checkpoint
            verb: ``fit`` takes all of it; for ``validate`` and ``test`` the trainer is this machine's own, but for its
                precision
            options: what the user changes, as on the command line; what they name, the checkpoint may name too

        Raises:
            TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
            UserError: the file is no checkpoint of bustseg, or its configuration cannot be used
        """
        check_files(options)
        stored = read_checkpoint(path)[RECORD]["config"]
        check_config(stored, path)
        if verb != "fit":
            precision = (stored.get("trainer") or {}).get("precision")
            stored = {key: stored[key] for key in OF_A_SCORE if key in stored}
            stored |= {"trainer": {"precision": precision}} if precision else {}
        return cls.of_config(stored, origin=str(path)).with_options(options)

    @classmethod
    def of_run(cls, run_id: str) -> Experiment:
        """The experiment that a run has stored as ``config.yaml``.

        Raises:
            TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
            UserError: no such run, or its configuration cannot be used
        """
        return cls.of_config(read_yaml(run_file(run_id, "config.yaml"))[1], origin=f"run {run_id}")

    def but(self, changes: Mapping[str, Any] | None = None, /, **short: Any) -> Experiment:
        """The same experiment with changes.

        Args:
            changes: dotted key (``model.optimizer.init_args.lr``) to its value, which replaces what was there
            short: the same by a key's ending (``lr=1e-3``), where only one key ends so

        Raises:
            UserError: a key that is unknown or ambiguous, or a value that cannot be used
        """
        config = self.config
        for key, value in {**(changes or {}), **{self.key(name): value for name, value in short.items()}}.items():
            put(config, key, copy.deepcopy(value))
        changed = Experiment.of_config(config, self.name, self.origin)
        for key in OF_A_RUN:
            if key in self._namespace:
                changed._namespace[key] = self._namespace[key]  # noqa: SLF001 (its own class)
        return changed

    def with_options(self, options: Sequence[str]) -> Experiment:
        """The same experiment with options as on the command line.

        Raises:
            UserError: an option that cannot be used
        """
        return Experiment.parse(options, self) if options else self

    def key(self, ending: str) -> str:
        """The dotted key that ends so: ``data.batch_size`` for ``batch_size``.

        Raises:
            UserError: no key ends so, or several do
        """
        known = self.all_keys()
        if ending in known:
            return ending
        found = [key for key in known if key.endswith(f".{ending}")]
        if not found:
            raise UserError(f"unknown config key `{ending}`{did_you_mean(ending, known)}")
        if len(found) > 1:
            raise UserError(f"several config keys end in `{ending}`: name one of {', '.join(found)}")
        return found[0]

    def all_keys(self) -> list[str]:
        """All dotted keys, those of sections among them."""
        parts = [key.split(".") for key, _ in flatten(self._config)]
        return list(dict.fromkeys(".".join(key[: end + 1]) for key in parts for end in range(len(key))))

    def __getitem__(self, key: str) -> Any:
        value: Any = self._config
        for part in key.split("."):
            value = value[part]
        return copy.deepcopy(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Experiment) and self._config == other._config

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Experiment({self.name or self.origin or ''!r}, network {self['model.network.class_path']})"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as plain types, defaults filled in; a copy."""
        return copy.deepcopy(self._config)

    @cached_property
    def _config(self) -> dict[str, Any]:
        # made once: the parser takes a third of a second to write it
        text = _parser().dump_whole(self._namespace, skip_link_targets=False, skip_unset=False, format="yaml")
        return {key: without_own_readers(value) for key, value in yaml.safe_load(text).items() if key not in OF_A_RUN}

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint that a config file names, which is no part of the experiment itself."""
        return self._namespace.get("ckpt_path")

    @property
    def weights_only(self) -> bool | None:
        """Lightning's choice of how checkpoints are read, when the user has made it."""
        return self._namespace.get("weights_only")

    def save(self, path: Path) -> None:
        """Write the configuration as a file that :meth:`read` takes, for this user alone: it may hold credentials."""
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def untrained(self) -> Experiment:
        """The same experiment whose networks ask for no pretrained weights: a checkpoint brings its own."""
        return self.but({"model.network": without_pretrained(self["model.network"])})

    def instantiate(self) -> Namespace:
        """Make what the configuration names: ``model``, ``data``, the trainer's options and the callbacks.

        Raises:
            TrustError: a stored configuration names what only the user may allow, see :mod:`bustseg.trust`
            UserError: something cannot be made
        """
        if self.origin:
            check_config(self._config, self.origin)
        use_packaged_weights()
        with fail_fast(), _guarded(self.origin), building(self.origin) if self.origin else nullcontext():
            return _parser().instantiate(self._namespace)


def scored_experiment(verb: str, ckpt_path: str | None, options: Sequence[str]) -> tuple[Experiment, Path]:
    """What `validate` and `test` score: the experiment of a checkpoint, changed by options, and the checkpoint's file.

    Raises:
        UserError: no checkpoint is named, or it or an option cannot be used
    """
    if ckpt_path is None:
        with suppress(UserError):
            Experiment.parse(options)  # which answers --print_config and --model.network.help
        raise UserError(
            f"`bustseg {verb}` needs trained weights: give --ckpt_path FILE, a run id, runs:/ID, models:/NAME@ALIAS "
            "or latest"
        )
    checkpoint = resolve_checkpoint(ckpt_path)
    return Experiment.of_checkpoint(checkpoint, verb, options), checkpoint


def _overrides(options: Sequence[str]) -> dict[str, str]:
    """The options of a command line that are no config files: ``["--data.fold=1", "--model.flip", "true"]``."""
    found: dict[str, str] = {}
    for option, after in zip(options, [*options[1:], "--"], strict=True):
        name, equals, value = option.partition("=")
        if name.startswith("--") and name != "--config":
            found[name[2:]] = value if equals else "" if after.startswith("--") else after
    return found


def _needs_resolving(content: Any, key: str) -> bool:
    """Whether a dotted key can be put only into what a config file means, and not into its own words.

    The file may name a class or another file by a text alone, or write keys with dots.
    """
    for part in key.split("."):
        if isinstance(content, str) or (isinstance(content, dict) and any("." in str(name) for name in content)):
            return True
        content = content.get(part) if isinstance(content, dict) else None
    return False


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a nested configuration, making the mappings on the way."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    config[last] = value


def with_shipped_configs(options: Sequence[str]) -> list[str]:
    """Options in which a config that ships is its file, wherever this is run: ``--config baselines/unet_lite0``.

    Raises:
        UserError: no such file or config
    """
    found: list[str] = []
    for before, option in zip(["", *options], options, strict=False):
        name, equals, value = option.partition("=")
        if before in ("--config", "-c"):
            found.append(str(find_config(option)))
        elif name in ("--config", "-c") and equals:
            found += ["--config", str(find_config(value))]
        else:
            found.append(option)
    return found


def check_files(options: Sequence[str]) -> None:
    """Look at config files before the parser does, whose message does not name the file.

    What they and the other options name is the user's own word, see :mod:`bustseg.trust`.

    Raises:
        UserError: a file that is not there, or holds no configuration
    """
    allow_arguments(options)
    for path in (options[i + 1] for i, option in enumerate(options[:-1]) if option in ("--config", "-c")):
        text, content = read_yaml(Path(path))
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no configuration: see configs/quickstart.yaml for one")
        allow_text(text)


@contextmanager
def _guarded(origin: str) -> Iterator[None]:
    """While it lasts, a stored configuration gets its own kinds of class only, and errors are one line."""
    with stored_config(origin) if origin else nullcontext(), explained():
        yield


@contextmanager
def explained() -> Iterator[None]:
    """Turn what parsing and building raise into one line for the user.

    Raises:
        UserError: something raised
    """
    try:
        yield
    except Exception as error:  # classes of anyone's are built here, and may raise anything
        raise explain(error) from error


def explain(error: Exception) -> UserError:
    """One line for what jsonargparse, or what it has built, says in several."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return cause
        if type(cause).__name__ in _DOWNLOAD_ERRORS:
            return download_error("the network's encoder", cause)  # type: ignore[arg-type]
    text = str(error)
    if missing := re.search(r"arguments are required: ([^\s,]+)", text):
        return UserError(f"no {missing[1]}: name a config (--config configs/quickstart.yaml) or give --{missing[1]}")
    if unknown := _UNKNOWN_KEY.match(text):
        found = unknown.groupdict()
        key = ".".join(part for part in (found["group"], found["key"] or found["option"]) if part)
        if usual := meant(key):
            return UnknownKeyError(f"unknown config key `{key}`: did you mean --{usual}?", key)
        hint = did_you_mean(key, _parser().get_defaults().keys(branches=True))
        return UnknownKeyError(f"unknown config key `{key}`{hint}", key)
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    words = wrong_value(text) or " ".join(dict.fromkeys(lines))[:600]
    parsed, unknown = _PARSED_KEY.search(text), _UNKNOWN_ARGUMENT.search(text)
    if parsed and unknown:
        return UnknownKeyError(words, f"{parsed[1]}.init_args.{unknown['argument']}")
    return UserError(words)


def wrong_value(text: str) -> str:
    """One line for a value of the wrong type, from jsonargparse's list of all types that it tried.

    Args:
        text: the parser's message

    Returns:
        The key, its value and what it takes; empty when the message says something else.
    """
    key, value = _PARSED_KEY.search(text), re.search(r"(?:Given value|Got value): (.*)", text)
    if key is None:
        return ""
    if refused := re.search(r"Problem with given class_path '([^']+)':\s*(.*)", text):
        return f"`{key[1]}` names {refused[1]}: {refused[2].strip()}"
    kinds = dict.fromkeys(re.findall(r"Expected a (<class '\w+'>|typing\.Literal\[.*?\]|dot import path)", text))
    choices = [word.strip("' ") for kind in kinds if "Literal" in kind for word in kind[15:-1].split(",")]
    wanted = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    wanted += [_KINDS[kind] for kind in kinds if kind in _KINDS]
    if value is None or not wanted:
        return ""
    return f"`{key[1]}` is {value[1].strip()[:200]}: give {', or '.join(wanted)}"


_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "a text",
    "<class 'list'>": "a list",
    "<class 'tuple'>": "a list of as many values as it has",
    "<class 'dict'>": "a mapping",
    "<class 'NoneType'>": "null",
    "dot import path": "a class (class_path and init_args)",
}
"""What a message calls the types of values."""


def did_you_mean(key: str, known: Iterator[str] | Sequence[str]) -> str:
    """The ending of a message on an unknown key: the keys that may have been meant."""
    close = difflib.get_close_matches(key, list(known), n=3, cutoff=0.6)
    return f": did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ": see `bustseg fit --help`"
