"""Shell completion: one parser with every verb, from which shtab writes the script."""

from __future__ import annotations

import argparse
import pkgutil
from importlib import import_module
from typing import Any

import shtab

from bustseg import commands
from bustseg.command_line import Docstring, add_arguments, rest_of
from bustseg.experiment import make_parser


def script(shell: str) -> str:
    """The script for a shell: ``bash``, ``zsh`` or ``tcsh``.

    It knows every key of an experiment by name, and asks bustseg for nothing while somebody types.
    """
    return shtab.complete(whole_parser(), shell)


def whole_parser() -> argparse.ArgumentParser:
    """A parser of all verbs with their options, made to be read and not to parse."""
    whole = argparse.ArgumentParser(prog="bustseg")
    whole.add_argument("--version", action="store_true", help="print the version")
    keys = [f"--{key}" for key in make_parser().get_defaults().keys(branches=True)]
    _add_verbs(whole.add_subparsers(), commands.__path__, f"{commands.__name__}.", keys)
    return whole


def _add_verbs(verbs: Any, path: Any, prefix: str, keys: list[str]) -> None:
    for module in pkgutil.iter_modules(path, prefix):
        name = module.name.rpartition(".")[2]
        if module.ispkg:
            group = verbs.add_parser(name, help="what is done with data sets")
            _add_verbs(group.add_subparsers(), import_module(module.name).__path__, f"{module.name}.", keys)
            continue
        function = getattr(import_module(module.name), name)
        parser = verbs.add_parser(name, help=Docstring.of(function).summary.replace("%", "%%"), allow_abbrev=False)
        known = add_arguments(parser, function)
        if rest_of(function) is not None:
            for key in keys:
                if key not in known:
                    parser.add_argument(key, help="key of an experiment")
