"""A typed function as a command: its signature and docstring are the options and the help.

Parameters before ``*`` are positional arguments, those after it are options. A ``bool`` is a flag, a ``list`` takes
several values, a ``Literal`` is a choice, and a default makes an option optional. What a signature cannot express is
given in ``Annotated[..., Option(...)]``. jsonargparse reads signatures too, but it supports neither ``--size 64 128``,
nor ``--resume`` without a value, nor mutually exclusive options, and importing it takes longer than most of these
commands.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from bustseg.errors import UserError

Command = Callable[..., int]

SLOW = ("fit", "validate", "test", "summary", "cv", "sweep", "reproduce", "compare", "explain", "predict", "export")
"""Verbs whose imports take seconds."""


@dataclass(frozen=True)
class Option:
    """What an option's type and name do not say.

    Attributes:
        names: its spellings, when they are not ``--`` and the parameter's name
        metavar: name of its value in the help
        convert: from text to value, when the type is not enough
        repeated: whether it may be given several times, with one value each
        group: name of a group of mutually exclusive options
        hidden: whether the help leaves it out
    """

    names: tuple[str, ...] = ()
    metavar: str | None = None
    convert: Callable[[str], Any] | None = None
    repeated: bool = False
    group: str | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Rest:
    """Marks the parameter that takes all remaining options, which are passed on to the parser of experiments.

    Attributes:
        shown: whether the help lists those options too
    """

    shown: bool = False


ExperimentOptions = Annotated[list[str], Rest()]
"""Type of a parameter that takes the options of an experiment, in addition to the command's own."""

ShownExperimentOptions = Annotated[list[str], Rest(shown=True)]
"""The same, for commands of which these are the main options."""


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line for the user.

    Attributes:
        spellings: every spelling of its options, and whether the help shows it
    """

    spellings: Mapping[str, bool] = MappingProxyType({"-h": True, "--help": True})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


@dataclass(frozen=True)
class Docstring:
    """The parts of a function's docstring (Google style).

    Attributes:
        summary: the first paragraph
        example: a command line
        arguments: description of each parameter
    """

    summary: str
    example: str
    arguments: dict[str, str]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Docstring:
        """Read a function's docstring."""
        summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
        sections: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in rest.splitlines():
            if line and not line.startswith(" ") and line.endswith(":"):
                lines = sections.setdefault(line[:-1], [])
            else:
                lines.append(line.removeprefix("    "))
        arguments: dict[str, str] = {}
        for line in sections.get("Args", []):
            if line and not line.startswith(" "):
                name, _, text = line.partition(": ")
                arguments[name] = text
            elif line and arguments:
                arguments[name] += f" {line.strip()}"
        example = " ".join(line.strip() for line in sections.get("Example", []) if line.strip())
        return cls(" ".join(summary.split()), example, arguments)


def call(function: Command, args: Sequence[str], prog: str) -> int:
    """Run a command with arguments as in ``sys.argv``; returns the exit code.

    Args:
        function: the command
        args: its arguments
        prog: the command as typed, such as ``bustseg predict``

    Raises:
        UserError: arguments that it does not take
        SystemExit: after printing the help
    """
    rest = rest_of(function)
    if rest is not None and rest[1].shown and {"-h", "--help", "--help-all"} & set(args):
        print((_experiment_help if "--help-all" in args else _short_help)(function, prog), end="")
        return 0
    parser = make_parser(function, prog)
    _check_spelling(parser, args, only_these=rest is None)
    if rest is None:
        return function(**vars(parser.parse_args(list(args))))
    known, others = parser.parse_known_args(list(args))
    return function(**vars(known), **{rest[0]: others})


def rest_of(function: Command) -> tuple[str, Rest] | None:
    """Name and marker of the parameter that takes the options of an experiment; None when there is none."""
    return next(((name, marker) for name, _, marker in _parameters(function) if isinstance(marker, Rest)), None)


def beginning(verb: str, args: Sequence[str]) -> AbstractContextManager[None]:
    """On a terminal, say at once that a verb with slow imports has started; not when its help is requested."""
    asked = any("help" in arg or arg in ("-h", "--print_config") for arg in args)
    if verb not in SLOW or asked or not sys.stderr.isatty():
        return nullcontext()
    from bustseg.progress import waiting

    return waiting(f"bustseg {verb}: loading PyTorch and other libraries")


def make_parser(function: Command, prog: str) -> _Parser:
    """The parser of a command's own arguments."""
    docstring = Docstring.of(function)
    parser = _Parser(
        prog=prog,
        description=docstring.summary,
        epilog=f"example: {docstring.example}",
        # otherwise an option of an experiment could be taken for an abbreviation of one of these
        allow_abbrev=False,
    )
    parser.spellings = {**parser.spellings, **add_arguments(parser, function)}
    return parser


def _check_spelling(parser: _Parser, args: Sequence[str], only_these: bool) -> None:
    """Refuse an abbreviated or misspelt option, and suggest the one that may have been meant.

    Args:
        parser: parser of the command's own options
        args: the command's arguments
        only_these: whether the command takes no options but its own; if it takes others, an option is refused only when
            it is the beginning of one of the command's own, since the experiment's parser checks the rest
    """
    shown = [spelling for spelling, visible in parser.spellings.items() if visible]
    for arg in args:
        if arg == "--":
            return
        name = arg.partition("=")[0]
        if not name.startswith("--") or " " in name or name in parser.spellings:
            continue
        meant = [spelling for spelling in shown if spelling.startswith(name)]
        if only_these and not meant:
            meant = difflib.get_close_matches(name, shown, n=1)
        if meant:
            raise UserError(f"no option {name}: did you mean {' or '.join(meant)}? (see `{parser.prog} --help`)")
        if only_these:
            raise UserError(f"no option {name} (see `{parser.prog} --help`)")


def add_arguments(parser: argparse.ArgumentParser, function: Command, skip: Sequence[str] = ()) -> dict[str, bool]:
    """Add a command's arguments, except those in ``skip``, to a parser (argparse's or jsonargparse's).

    Returns:
        the spellings of those options, and whether the help shows each
    """
    spellings: dict[str, bool] = {}
    texts = Docstring.of(function).arguments
    groups: dict[str, Any] = {}
    for name, annotation, marker in _parameters(function):
        if isinstance(marker, Rest) and not marker.shown and name not in skip:
            parser.add_argument_group("the experiment", texts.get(name))
        if isinstance(marker, Rest) or name in skip:
            continue
        option = marker or Option()
        target: Any = parser
        if option.group is not None:
            target = groups[option.group] = groups.get(option.group) or parser.add_mutually_exclusive_group()
        parameter = inspect.signature(function).parameters[name]
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        keywords = _keywords(annotation, parameter, option, positional)
        keywords["help"] = argparse.SUPPRESS if option.hidden else _help(texts.get(name, ""), parameter.default)
        if positional:
            target.add_argument(name, **keywords)
        else:
            action = target.add_argument(*(option.names or (f"--{name}",)), dest=name, **keywords)
            spellings |= dict.fromkeys(action.option_strings, not option.hidden)
    # these two are removed from the arguments before parsing; they are here only for the help
    common: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--debug", action="store_true", help="show an error's traceback", **common)
    trust = "package whose classes a stored model may use (or set BUSTSEG_TRUST)"
    parser.add_argument("--trust", metavar="PACKAGE", help=trust, **common)
    return spellings


def _parameters(function: Command) -> list[tuple[str, Any, Option | Rest | None]]:
    """Name, plain type and marker of each parameter."""
    found = []
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name == "return":
            continue
        marker = None
        if get_origin(hint) is Annotated:
            hint, *markers = get_args(hint)
            marker = next((one for one in markers if isinstance(one, Option | Rest)), None)
        found.append((name, hint, marker))
    return found


def _keywords(annotation: Any, parameter: inspect.Parameter, option: Option, positional: bool) -> dict[str, Any]:
    """Keywords of ``add_argument``."""
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if get_origin(annotation) in (typing.Union, UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not NoneType)
    if annotation is bool:
        flag = argparse.BooleanOptionalAction if default else "store_true"
        return {"action": flag, "default": bool(default)}
    several = get_origin(annotation) is list
    item = get_args(annotation)[0] if several else annotation
    keywords: dict[str, Any] = {"default": default, "metavar": option.metavar}
    if get_origin(item) is Literal:
        choices = get_args(item)
        keywords |= {"choices": choices, "type": type(choices[0])}
    else:
        keywords["type"] = option.convert or {Path: _path}.get(item, item)
    if option.repeated:
        keywords["action"] = "append"
    elif several:
        keywords["nargs"] = "+" if required or not positional else "*"
    elif positional and not required:
        keywords["nargs"] = "?"
    return keywords if positional else {**keywords, "required": required}


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _help(text: str, default: Any) -> str:
    """The help of an option: its text, and its default where the text does not state it."""
    text = text.replace("%", "%%")
    unsaid = (inspect.Parameter.empty, None, False, True)
    if any(default is value for value in unsaid) or default in ("", []) or "(default" in text:
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return f"{text} (default {shown})"


def _experiment_help(function: Command, prog: str) -> str:
    from bustseg.experiment import make_parser as experiment_parser

    docstring = Docstring.of(function)
    parser = experiment_parser(prog, docstring.summary)
    parser.epilog = f"example: {docstring.example}"
    add_arguments(parser, function, skip=("ckpt_path",))  # an experiment's parser has that one already
    return parser.format_help()


def _short_help(function: Command, prog: str) -> str:
    """A command's own options, and the most used keys of an experiment."""
    from bustseg.usual_keys import help_text

    docstring = Docstring.of(function)
    parser = make_parser(function, prog)
    needed = "--config FILE" if "--config" in docstring.example else "--ckpt_path MODEL"
    parser.usage = f"{prog} {needed} [--KEY VALUE ...]"
    parser.description = f"{docstring.summary}\n\nexample: {docstring.example}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = None
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="config file, or the name of a preset; repeatable, later ones win"
    )
    parser.add_argument("--help-all", action="store_true", help="every key of an experiment")
    parser.add_argument("--print_config", action="store_true", help="print the resulting configuration and stop")
    return f"{parser.format_help()}{help_text()}\n"
