"""One experiment: config files and changes to them, resolved once into the complete configuration of a training."""

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
"""Keys that a config file may have but that concern one run of the experiment, not the experiment itself."""

OF_A_SCORE = ("seed_everything", "model", "data", "report", "explain", "tracking")
"""Sections of a checkpoint's configuration that a test uses: it may run on a different machine than the fit did."""

_DOWNLOAD_ERRORS = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "HfHubHTTPError", "URLError", "HTTPError")
"""What the hub, timm and torchvision raise, by name: importing their modules only for this would cost a second."""

_UNKNOWN_KEY = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option|Key) '(?P<key>[\w.]+)'"
    r"|unrecognized arguments?: -*(?P<option>[\w.-]+)",
    re.IGNORECASE,
)
"""jsonargparse's messages for an unknown key in a file or on the command line."""

_PARSED_KEY = re.compile(r'key "([^"]+)":')
"""How its messages name the key whose value could not be used."""

_UNKNOWN_ARGUMENT = re.compile(r"Option '(?P<argument>[\w.]+)' is not accepted")
"""Its message for an unknown argument of a class."""


def fast_precision() -> str:
    """``bf16-mixed`` where the hardware supports it natively, else ``32-true``."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    try:
        capabilities = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return "32-true"
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))
    return "bf16-mixed" if fast else "32-true"


class _QuotedText(yaml.SafeDumper):
    """Writes strings in quotes: without them jsonargparse reads ``1e-3`` as a number, which PyYAML does not."""


_QuotedText.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


class _Parser(LightningArgumentParser):
    """Parser whose errors are exceptions, so that the command line can print them in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["exit_on_error"] = False
        self.changes: dict[str, Any] = {}
        """Values by dotted key that replace those of the next config file."""
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
        allow_abbrev=False,  # an abbreviated option is refused, as an abbreviated key in a file is
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
            # bustseg's sampler shards by itself, and counts no evaluation image twice
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
    """The parser of this process, made once: it takes a tenth of a second."""
    return make_parser()


def defaults() -> dict[str, Any]:
    """The default configuration of an experiment, nested; the trainer's precision is this machine's."""
    return _parser().get_defaults().as_dict()


class Experiment:
    """The complete configuration of a training, parsed and checked, but not instantiated.

    Experiments are immutable; :meth:`but` and :meth:`with_options` derive others.

    Examples:
        >>> experiment = Experiment.read("configs/quickstart.yaml")  # doctest: +SKIP
        >>> experiment.but(lr=1e-3, max_epochs=5)["trainer.max_epochs"]  # doctest: +SKIP
        5

    Args:
        namespace: the parsed configuration
        name: name of the last config file, without its extension; None when there was none
        origin: file or run whose stored configuration it is based on; empty when the user has written all of it
        overrides: options given in addition to the config files, key to value, as typed
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
            base: the experiment that they change; the defaults when not given

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
        """The result of ``read(file).but(changes).with_options(options)``, parsed only once where the file allows it.

        Args:
            file: a config file
            changes: new values by dotted key, as in :meth:`but`
            options: later ones win

        Raises:
            UserError: one of them cannot be used
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
        """An experiment from a configuration such as :attr:`config`; missing keys get their defaults.

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
        """The experiment that a checkpoint was trained with.

        Args:
            path: the checkpoint
            verb: ``fit`` uses all of it; ``validate`` and ``test`` use this machine's trainer settings, except for the
                stored precision
            options: the user's changes, as on the command line; classes that they name are also allowed in the
                checkpoint

        Raises:
            TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
            UserError: the file is not a bustseg checkpoint, or its configuration cannot be used
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
        """The experiment that a run stored as ``config.yaml``.

        Raises:
            TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
            UserError: no such run, or its configuration cannot be used
        """
        return cls.of_config(read_yaml(run_file(run_id, "config.yaml"))[1], origin=f"run {run_id}")

    def but(self, changes: Mapping[str, Any] | None = None, /, **short: Any) -> Experiment:
        """The same experiment with changes.

        Args:
            changes: new values by dotted key (``model.optimizer.init_args.lr``)
            short: the same by the last part of a key (``lr=1e-3``), where only one key ends with it

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
        """The dotted key with this ending: ``data.batch_size`` for ``batch_size``.

        Raises:
            UserError: no key has this ending, or several have
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
        """All dotted keys, including those of sections."""
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
        # cached: the parser takes a third of a second to dump it
        text = _parser().dump_whole(self._namespace, skip_link_targets=False, skip_unset=False, format="yaml")
        return {key: without_own_readers(value) for key, value in yaml.safe_load(text).items() if key not in OF_A_RUN}

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint that a config file names; it is not part of the experiment itself."""
        return self._namespace.get("ckpt_path")

    @property
    def weights_only(self) -> bool | None:
        """Lightning's option for loading checkpoints; None when the user has not set it."""
        return self._namespace.get("weights_only")

    def save(self, path: Path) -> None:
        """Write the configuration to a file for :meth:`read`, readable only by this user: it may hold credentials."""
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def untrained(self) -> Experiment:
        """The same experiment without pretrained weights, which a checkpoint replaces anyway."""
        return self.but({"model.network": without_pretrained(self["model.network"])})

    def instantiate(self) -> Namespace:
        """Instantiate what the configuration names: ``model``, ``data``, the trainer's options and the callbacks.

        Raises:
            TrustError: a stored configuration names what only the user may allow, see :mod:`bustseg.trust`
            UserError: something cannot be instantiated
        """
        if self.origin:
            check_config(self._config, self.origin)
        use_packaged_weights()
        with fail_fast(), _guarded(self.origin), building(self.origin) if self.origin else nullcontext():
            return _parser().instantiate(self._namespace)


def scored_experiment(verb: str, ckpt_path: str | None, options: Sequence[str]) -> tuple[Experiment, Path]:
    """What `validate` and `test` score: a checkpoint's experiment with the options applied, and the checkpoint's file.

    Raises:
        UserError: no checkpoint is named, or it or an option cannot be used
    """
    if ckpt_path is None:
        with suppress(UserError):
            Experiment.parse(options)  # this handles --print_config and --model.network.help
        raise UserError(
            f"`bustseg {verb}` needs trained weights: give --ckpt_path FILE, a run id, runs:/ID, models:/NAME@ALIAS "
            "or latest"
        )
    checkpoint = resolve_checkpoint(ckpt_path)
    return Experiment.of_checkpoint(checkpoint, verb, options), checkpoint


def _overrides(options: Sequence[str]) -> dict[str, str]:
    """The options of a command line other than config files: ``["--data.fold=1", "--model.flip", "true"]``."""
    found: dict[str, str] = {}
    for option, after in zip(options, [*options[1:], "--"], strict=True):
        name, equals, value = option.partition("=")
        if name.startswith("--") and name != "--config":
            found[name[2:]] = value if equals else "" if after.startswith("--") else after
    return found


def _needs_resolving(content: Any, key: str) -> bool:
    """Whether a dotted key can be set only in the parsed configuration, and not in the content of the file.

    This is so where the file gives a class or another file as a plain string, or has dotted keys.
    """
    for part in key.split("."):
        if isinstance(content, str) or (isinstance(content, dict) and any("." in str(name) for name in content)):
            return True
        content = content.get(part) if isinstance(content, dict) else None
    return False


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a nested configuration, creating the mappings it needs."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    config[last] = value


def with_shipped_configs(options: Sequence[str]) -> list[str]:
    """The options with each preset's name (``--config baselines/unet_lite0``) replaced by the path of its file.

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
    """Check config files before the parser reads them, since its messages do not name the file.

    What they and the other options name is trusted, see :mod:`bustseg.trust`.

    Raises:
        UserError: a file that does not exist, or does not hold a configuration
    """
    allow_arguments(options)
    for path in (options[i + 1] for i, option in enumerate(options[:-1]) if option in ("--config", "-c")):
        text, content = read_yaml(Path(path))
        if not isinstance(content, dict):
            raise UserError(f"{path} does not hold a configuration: see configs/quickstart.yaml for an example")
        allow_text(text)


@contextmanager
def _guarded(origin: str) -> Iterator[None]:
    """Context in which a stored configuration may use only allowed kinds of class, and errors become one line."""
    with stored_config(origin) if origin else nullcontext(), explained():
        yield


@contextmanager
def explained() -> Iterator[None]:
    """Turn exceptions of parsing and building into one line for the user.

    Raises:
        UserError: instead of any other exception
    """
    try:
        yield
    except Exception as error:  # users' own classes are built here, and may raise anything
        raise explain(error) from error


def explain(error: Exception) -> UserError:
    """One line for an error of jsonargparse, or of what it has built, that may take several."""
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
    """One line for a value of the wrong type, from jsonargparse's list of the types that it tried.

    Args:
        text: the parser's message

    Returns:
        The key, its value and what it accepts; empty when the message is about something else.
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
    "<class 'tuple'>": "a list with the right number of values",
    "<class 'dict'>": "a mapping",
    "<class 'NoneType'>": "null",
    "dot import path": "a class (class_path and init_args)",
}
"""How messages describe the types of values."""


def did_you_mean(key: str, known: Iterator[str] | Sequence[str]) -> str:
    """The end of a message about an unknown key: the keys that may have been meant."""
    close = difflib.get_close_matches(key, list(known), n=3, cutoff=0.6)
    # beside a name that differs by a letter, names that are merely alike only distract
    likeness = [difflib.SequenceMatcher(None, name, key).ratio() for name in close]
    close = [name for name, ratio in zip(close, likeness, strict=True) if ratio > likeness[0] - 0.1]
    return f": did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ": see `bustseg fit --help`"
