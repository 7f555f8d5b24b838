"""What a configuration that came with a file may name: classes of the kind that each key expects, and nothing else.

Checkpoints, runs, ensembles, exported folders and MLflow models carry the configuration that they were made with, and
whoever rebuilds a network from it imports and calls what it names. jsonargparse accepts any function as a class path
and imports strings in many places, so a stranger's file could run any command. Three barriers prevent that:

1. :func:`check_config` checks the configuration before anything is imported: sizes, places, and the class of each key.
2. :func:`stored_config` guards every import that jsonargparse makes while it reads or builds such a configuration,
   however deep or well hidden the name is: anything but a class of an allowed kind and package ends the command.
3. :func:`building` stops constructors that start a process, open a connection, read a pickle or change files.

A configuration that the user names on the command line is trusted: exactly the names in it are allowed for the rest of
the process (:func:`allow_text`). ``--trust NAME`` and ``BUSTSEG_TRUST`` in the environment add packages, modules or
classes for stored configurations; functions stay refused.
"""

from __future__ import annotations

import inspect
import os
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bustseg.bounds import check_text
from bustseg.errors import UserError
from bustseg.redact import redact

VARIABLE = "BUSTSEG_TRUST"
"""Environment variable with the names that the user trusts, separated by commas; ``--trust`` adds to it."""

MAX_DEPTH, MAX_VALUES, MAX_TEXT = 50, 50_000, 20_000
"""Bounds of a stored configuration: nesting, values, characters of one text. The largest preset has 300 values."""

_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_WORD = re.compile(r"[\w-]*")
_DTYPE = re.compile(r"torch\.[a-z]+\d*$")


class TrustError(UserError):
    """A file names something that only the user may allow."""


@dataclass(frozen=True)
class Kind:
    """The kind of class that a key of a configuration expects.

    Attributes:
        what: its name in messages
        bases: classes, one of which the named class must be or derive from
        homes: modules (including their submodules) that the class must be both named in and defined in
        closed: modules and classes in these homes that are refused nevertheless, since they read files, use the
            network, call what they are given or delete what their state names
    """

    what: str
    bases: tuple[str, ...]
    homes: tuple[str, ...]
    closed: tuple[str, ...] = ()


MODULE = Kind(
    "a torch.nn.Module",
    ("torch.nn.Module",),
    (
        "bustseg.models",
        "bustseg.losses",
        "torch.nn",
        "torchvision.models",
        "torchvision.ops",
        "timm.models",
        "timm.layers",
        "timm.loss",
        "segmentation_models_pytorch",
        "monai.networks",
        "monai.losses",
    ),
    (
        "torch.nn.parallel",
        "timm.models._features_fx",
        "monai.losses.perceptual",
        "monai.losses.PerceptualLoss",
        "monai.networks.nets.cell_sam_wrapper",
        "monai.networks.nets.CellSamWrapper",
        "monai.networks.nets.transchex",
        "monai.networks.nets.Transchex",
        "monai.networks.trt_compiler",
    ),
)
OPTIMIZER = Kind("an optimizer", ("torch.optim.Optimizer",), ("torch.optim", "timm.optim", "monai.optimizers"))
SCHEDULER = Kind(
    "a learning-rate schedule",
    ("torch.optim.lr_scheduler.LRScheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"),
    ("torch.optim.lr_scheduler", "torch.optim.swa_utils", "lightning.pytorch.cli", "monai.optimizers.lr_scheduler"),
)
POSTPROCESS = Kind("a PostProcess", ("bustseg.masks.PostProcess",), ("bustseg.masks", "bustseg.postprocess"))
SOURCE = Kind("a data source", ("bustseg.data.sources.Source", "bustseg.data.sources.Part"), ("bustseg.data",))
TRANSFORM = Kind(
    "an albumentations transform",
    ("albumentations.BasicTransform", "albumentations.BaseCompose"),
    ("albumentations",),
    ("albumentations.Lambda", "albumentations.augmentations.other.lambda_transform"),
)
CALLBACK = Kind(
    "a callback",
    ("lightning.pytorch.Callback",),
    ("lightning.pytorch.callbacks", "bustseg.callbacks"),
    (
        "lightning.pytorch.callbacks.model_checkpoint",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.on_exception_checkpoint",
        "lightning.pytorch.callbacks.OnExceptionCheckpoint",
        "lightning.pytorch.callbacks.lambda_function",
        "lightning.pytorch.callbacks.LambdaCallback",
        "lightning.pytorch.callbacks.prediction_writer",
        "lightning.pytorch.callbacks.BasePredictionWriter",
    ),
)
LOGGER = Kind(
    "a logger that writes to this machine",
    ("lightning.pytorch.loggers.Logger",),
    (
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.loggers.csv_logs",
        "lightning.pytorch.loggers.tensorboard",
    ),
)
STRATEGY = Kind("a strategy", ("lightning.pytorch.strategies.Strategy",), ("lightning.pytorch.strategies",))
PROFILER = Kind("a profiler", ("lightning.pytorch.profilers.Profiler",), ("lightning.pytorch.profilers",))
PRECISION = Kind(
    "a precision plug-in",
    ("lightning.pytorch.plugins.precision.Precision",),
    ("lightning.pytorch.plugins.precision", "lightning.pytorch.plugins"),
)

KEYS: dict[str, Kind] = {
    "model.network": MODULE,
    "model.loss": MODULE,
    "model.optimizer": OPTIMIZER,
    "model.lr_scheduler": SCHEDULER,
    "model.postprocess": POSTPROCESS,
    "data.source": SOURCE,
    "data.augmentation": TRANSFORM,
    "trainer.callbacks": CALLBACK,
    "trainer.logger": LOGGER,
    "trainer.strategy": STRATEGY,
    "trainer.profiler": PROFILER,
    "trainer.plugins": PRECISION,
}
"""The keys of a configuration under which a class may be named, at any depth, and what it must be."""

_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_url", "cache_dir")
"""Arguments with which timm and MONAI read weights from elsewhere, some by unpickling; a checkpoint has its own
weights, so its configuration needs none of these."""

_PLACE = re.compile(r"://|^(?:tu-)?(?:hf[-_]hub|local[-_]dir):", re.IGNORECASE)
"""A string that would make a network's library download something."""

_words: list[str] = []
_named: set[str] = set()


def allow_text(text: str) -> None:
    """Allow, in this process, what the user has written, such as the text of a config file.

    Args:
        text: every dotted name in it may be imported
    """
    if text not in _words:
        _words.append(text)
        _named.update(_DOTTED.findall(text))


def allow_arguments(args: Sequence[str]) -> None:
    """Allow, in this process, the store and the classes (:data:`KEYS`) that the user's options name.

    File names are not trusted: whoever sends a file chooses its name.

    Args:
        args: the command line's arguments, ``--key=value`` or ``--key value``
    """
    for item, after in zip(args, [*args[1:], ""], strict=False):
        key, equals, value = item.removeprefix("--").partition("=")
        if item.startswith("--") and key.rstrip("+").startswith((*KEYS, "tracking.uri")):
            allow_text(value if equals else after)


def _written_by_user(text: Any) -> bool:
    return isinstance(text, str) and any(text in words for words in _words)


def trusted() -> tuple[str, ...]:
    """Packages, modules and classes that the user trusts in stored configurations, see :data:`VARIABLE`."""
    return tuple(name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip()))


def own_store(uri: str | None, origin: str | Path) -> str | None:
    """The MLflow store that a stored configuration names, if it is on this machine or is the user's own.

    A run's pictures and tables go there, and they may show patients, so a file must not be able to send them elsewhere.
    A URI is stored without its credentials; ``MLFLOW_TRACKING_URI`` provides them for the same store.

    Args:
        uri: the stored URI; None stands for the user's own
        origin: file or run that it came from, for messages

    Raises:
        TrustError: it is elsewhere, and the user has named it neither in an option nor in ``MLFLOW_TRACKING_URI``
    """
    if uri is None or _written_by_user(uri):
        return uri
    if (own := os.environ.get("MLFLOW_TRACKING_URI")) is not None and redact(own) == redact(uri):
        return own
    if _stays_here(uri):
        return uri
    raise TrustError(
        f"{origin} sends its runs to {redact(uri)}: give --tracking.uri {redact(uri)} if you want that, or "
        "--tracking.uri sqlite:///mlruns/mlflow.db to keep them here"
    )


def check_place(place: str | Path, base: str | Path, origin: str | Path) -> None:
    """Refuse a place to write to that a stored configuration chooses outside the working folder.

    Args:
        place: file or folder
        base: folder that the configuration names; where the user has named it, ``place`` may lie in it
        origin: file or run that the configuration came from, for messages

    Raises:
        TrustError: it is elsewhere, and the user has not named it
    """
    allowed = [Path(), Path(base)] if _written_by_user(str(base)) else [Path()]
    target = Path(place).expanduser().resolve()
    if not any(target.is_relative_to(folder.expanduser().resolve()) for folder in allowed):
        raise TrustError(
            f"{origin} writes to {place}, outside the folder that you work in: name logger or profiler again with a "
            "place of yours (--trainer.logger, --trainer.profiler, --trainer.default_root_dir)"
        )


def _stays_here(uri: str) -> bool:
    """Whether a store, with the files of its runs, is on this machine and nowhere else."""
    place = urlsplit(uri)
    if place.scheme == "sqlite":
        return not _files_elsewhere(Path(uri.removeprefix("sqlite:///")))
    if place.scheme == "file":
        return True
    # the query of a database's address may name another host, and Databricks' host is the name of a profile
    server = place.scheme.partition("+")[0] in ("http", "https", "postgresql", "mysql", "mssql")
    return server and place.hostname in ("localhost", "127.0.0.1", "::1") and not place.query


def _files_elsewhere(database: Path) -> bool:
    """Whether a local database, which may have come with the checkpoint, sends the files of runs to another machine."""
    if not database.is_file():
        return False
    places: list[str] = []
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as opened:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            with suppress(sqlite3.Error):  # no store of MLflow's, or one that is told to be unusable when it is opened
                places += [str(row[0]) for row in opened.execute(f"SELECT DISTINCT {column} FROM {table}")]
    return any(urlsplit(place).scheme not in ("", "file") for place in places if place != "None")


def taken_out(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names after ``--trust`` (``--trust A``, ``--trust=A,B``, several times), and the arguments without it.

    Raises:
        UserError: no name, or an invalid one
    """
    names, rest = [], []
    items = iter(args)
    for item in items:
        if item != "--trust" and not item.startswith("--trust="):
            rest.append(item)
            continue
        value = next(items, "") if item == "--trust" else item.partition("=")[2]
        for name in value.split(","):
            if not _DOTTED.fullmatch(f"x.{name}"):
                raise UserError(f"--trust {value}: name a package, module or class, such as --trust my_networks")
            names.append(name)
    return names, rest


@contextmanager
def trusting(names: Sequence[str]) -> Iterator[None]:
    """Trust further packages within the context, in this process and in those that it starts."""
    before = os.environ.get(VARIABLE)
    if names:
        os.environ[VARIABLE] = ",".join([*trusted(), *names])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def check_config(config: Any, origin: str | Path) -> None:
    """Refuse a stored configuration that is too large, or names something that its keys do not expect.

    The check itself imports only modules of allowed packages.

    Args:
        config: as it was stored, or as the parser has resolved it; mappings, lists and plain values
        origin: file or run that it came from, for messages

    Raises:
        TrustError: it may not be used
        UserError: it is not a configuration
    """
    if not isinstance(config, Mapping):
        raise UserError(f"the configuration in {origin} is not a mapping: create the file again")
    _Walk(str(origin)).section(config)


class _Walk:
    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.values = 0

    def section(self, config: Mapping[Any, Any]) -> None:
        for name, section in config.items():
            if not isinstance(section, Mapping):
                self.value(section, str(name), None, inside=True, depth=1)
                continue
            for key, value in section.items():
                place = f"{name}.{key}"
                self.value(value, place, KEYS.get(place), inside=False, depth=2)

    def value(self, value: Any, place: str, kind: Kind | None, inside: bool, depth: int) -> None:
        """Check a value; ``inside`` the arguments of a class a string need not be a class's name."""
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise TrustError(
                f"the configuration in {self.origin} has more than {MAX_VALUES} values or {MAX_DEPTH} levels, "
                "which no bustseg writes: do not use this file"
            )
        if isinstance(value, str):
            self.text(value, place, kind, inside)
        elif isinstance(value, Mapping):
            if kind is not None or "class_path" in value:
                self.reference(value, place, kind)
            for key, item in value.items():
                if key in _FILES and item is not None and kind is MODULE and not _written_by_user(item):
                    raise TrustError(
                        f"{self._at(place)} sets {key}, with which a network reads files: a checkpoint has its own "
                        "weights"
                    )
                if key != "class_path":
                    below = inside or key in ("init_args", "dict_kwargs")
                    self.value(item, f"{place}.{key}", kind, below, depth + 1)
        elif isinstance(value, list | tuple | set | frozenset):
            for index, item in enumerate(value):
                self.value(item, f"{place}.{index}", kind, inside, depth + 1)

    def text(self, text: str, place: str, kind: Kind | None, inside: bool) -> None:
        if len(text) > MAX_TEXT:
            raise TrustError(f"{self._at(place)} has {len(text)} characters (at most {MAX_TEXT}): do not use this file")
        check_text(text)
        if "class_path" in text:
            raise TrustError(f"{self._at(place)} holds a configuration inside a string, which is refused")
        if kind is MODULE and _PLACE.search(text) and not _written_by_user(text):
            raise TrustError(
                f"{self._at(place)} names {text!r:.100}, a place elsewhere: a checkpoint has its own weights"
            )
        if kind is not None and not inside and not _WORD.fullmatch(text):
            self.reference({"class_path": text}, place, kind)

    def reference(self, value: Mapping[Any, Any], place: str, kind: Kind | None) -> None:
        if "class_path" not in value:
            return
        path = value["class_path"]
        if not isinstance(path, str):
            raise TrustError(f"{self._at(place)} has a class_path that is not a string")
        if kind is None:
            raise TrustError(f"{self._at(place)} names {path!r:.100}, and this key takes no class")
        if _WORD.fullmatch(path):  # the name of a known class, which the import guard checks under its full name
            return
        try:
            approve(path, (kind,), self._at(place))
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"{self._at(place)} names {path:.100}, which cannot be imported: {error}") from error

    def _at(self, place: str) -> str:
        return f"{self.origin}: {place:.200}"


def approve(path: str, kinds: Iterable[Kind], where: str) -> Any:
    """The class of a dotted name, if it is of one of ``kinds`` and in an allowed package; also a ``torch.dtype``.

    Nothing outside of these packages is imported. What the user has named is allowed without a check.

    Raises:
        TrustError: it may not be imported; the message begins with ``where``
        ImportError, AttributeError, ValueError: there is nothing with that name in an allowed package
    """
    if path in _named:
        return _import(path)
    kinds = tuple(kinds)
    wanted = " or ".join(dict.fromkeys(kind.what for kind in kinds[:3]))
    if not _DOTTED.fullmatch(path):
        raise TrustError(f"{where} names {path!r:.100}, which is not a class")
    own = trusted()
    by_user = _within(path, own)
    if not by_user and not _within(path, (home for kind in kinds for home in kind.homes)) and not _DTYPE.match(path):
        package = path.partition(".")[0]
        known = {home.partition(".")[0] for kind in KEYS.values() for home in kind.homes}
        remedy = (
            "name it yourself, with --config, if you want it"
            if package in known
            else f"if you trust both the file and {package}, add --trust {package} or set {VARIABLE}={package}"
        )
        raise TrustError(
            f"{where} names {path:.100}, which a stored configuration may not (wanted: {wanted}): {remedy}"
        )
    found = _import(path)
    if not inspect.isclass(found):
        if type(found).__module__ == "torch" and type(found).__name__ == "dtype":
            return found
        raise TrustError(
            f"{where} names {path:.100}, which is not a class: stored configurations may name only classes (name it "
            "yourself, with --config, if you want it)"
        )
    for kind in kinds:
        if not issubclass(found, tuple(_import(base) for base in kind.bases)):
            continue
        defined = f"{found.__module__}.{found.__qualname__}"
        if by_user or _within(defined, own):
            return found
        if not _within(path, kind.closed) and not _within(defined, kind.closed) and _within(defined, kind.homes):
            return found
    raise TrustError(
        f"{where} names {path:.100}, which a stored configuration may not (wanted: {wanted}): name it yourself, with "
        f"--config, or add --trust {path:.100} if you trust the file"
    )


def _within(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.startswith(name + ".") for name in names)


def _import(path: str) -> Any:
    """The object of a dotted name, found as jsonargparse finds it."""
    from jsonargparse._util import import_object

    return getattr(import_object, "__wrapped__", import_object)(path)


class _Refused(BaseException):
    """Ends parsing at once: after any ``Exception`` jsonargparse tries the next type."""


_guard: ContextVar[str | None] = ContextVar("stored configuration", default=None)
_building: ContextVar[str | None] = ContextVar("building from a stored configuration", default=None)


@contextmanager
def stored_config(origin: str | Path) -> Iterator[None]:
    """Context in which jsonargparse imports only what a stored configuration may name, or what the user has named.

    Args:
        origin: file or run that the configuration came from, for messages

    Raises:
        TrustError: the configuration names something else
    """
    _install()
    token = _guard.set(str(origin))
    try:
        yield
    except _Refused as refused:
        raise TrustError(str(refused)) from None
    finally:
        _guard.reset(token)


@cache
def _install() -> None:
    """Install the check in jsonargparse's only function that imports what a value names.

    Raises:
        RuntimeError: this version of jsonargparse imports in another way, so nothing would be guarded
    """
    import jsonargparse._typehints as hints
    import jsonargparse._util as util

    plain = util.import_object

    @wraps(plain)
    def import_object(name: Any, *args: Any, **kwargs: Any) -> Any:
        origin = _guard.get()
        # names that come from the code's own signatures are not checked
        if origin is None or (args[0] if args else kwargs.get("check_path", True)) is False:
            return plain(name, *args, **kwargs)
        if not isinstance(name, str) or "." not in name:  # plain() refuses it
            return plain(name, *args, **kwargs)
        token = _building.set(None)  # what a known package does on import is allowed
        try:
            return approve(name, dict.fromkeys(KEYS.values()), origin)
        except TrustError as error:
            raise _Refused(str(error)) from None
        finally:
            _building.reset(token)

    # every module of the package that has imported the function by name
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "jsonargparse"]:
        names = vars(module)  # getattr would trigger the warnings of deprecated modules
        if names.get("import_object") is plain:
            module.import_object = import_object  # type: ignore[attr-defined]
        if callable(by_name := names.get("is_importable_module_path")):
            module.is_importable_module_path = _no_modules(by_name)  # type: ignore[attr-defined]
    if hints.import_object is not import_object:
        raise RuntimeError("this version of jsonargparse cannot be guarded against what a stored configuration names")


def _no_modules(plain: Any) -> Any:
    def is_importable_module_path(value: Any) -> bool:
        return _guard.get() is None and plain(value)

    return is_importable_module_path


_ACTIONS = frozenset(
    (
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "os.startfile",
        "pty.spawn",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.bind",
        "urllib.Request",
        "pickle.find_class",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
        "webbrowser.open",
        "sqlite3.connect",
        "open",
    )
)
"""Python's audit events (PEP 578) that no legitimate constructor of a network, loss, source or callback causes."""


@contextmanager
def building(origin: str | Path) -> Iterator[None]:
    """Stop what is built from a stored configuration from acting on this machine or the network, or filling its memory.

    This is not a sandbox for an attacker's code, which does not get this far, but a safety net for the constructors of
    known packages, some of which download or unpickle what their arguments name. Code that the user has named or trusts
    is not restricted.

    Args:
        origin: file or run that the configuration came from, for messages; a file's size tells how large its network is

    Raises:
        TrustError: a constructor tried to
    """
    from bustseg.network_bounds import TooLarge, bounded_tensors  # torch is not needed by whoever only parses

    _audit()
    token = _building.set(str(origin))
    try:
        with bounded_tensors(origin):
            yield
    except TooLarge as too_large:
        raise TrustError(str(too_large)) from None
    except _Refused as refused:
        raise TrustError(str(refused)) from None
    finally:
        _building.reset(token)


@cache
def _audit() -> None:
    sys.addaudithook(_on_event)


def _on_event(event: str, args: tuple[Any, ...]) -> None:
    if event not in _ACTIONS:
        return
    origin = _building.get()
    if origin is None or _harmless(event, args) or _by_known_code():
        return
    what = f"{event} {args[0]!r:.80}" if args else event
    raise _Refused(f"building what {origin} names would have side effects ({what}): do not trust this file")


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _harmless(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an event only reads a file, or concerns the import system's cache of a module that is imported late."""
    if not args:
        return False
    if event == "open":
        mode, flags = args[1], args[2]
        writes = bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool(flags & _WRITING)
        if not writes or args[0] == os.devnull:
            return True
    return "__pycache__" in str(args[0])


def _by_known_code() -> bool:
    """Whether the event was caused by a module that the user has named or trusts, or that the parser needs."""
    # jsonargparse looks for type stubs with typeshed_client, which starts a Python process to find its path
    names = {"typeshed_client", *trusted(), *(name.rpartition(".")[0] for name in _named)}
    frame = inspect.currentframe()
    while frame is not None:
        if _within(frame.f_globals.get("__name__", ""), names):
            return True
        frame = frame.f_back
    return False
