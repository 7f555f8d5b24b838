"""`bustseg completion`: one parser with all verbs, from which shtab generates the script."""

from __future__ import annotations

import argparse
import pkgutil
from importlib import import_module
from typing import Any, Literal


def completion(shell: Literal["bash", "zsh", "tcsh"] = "bash") -> int:
    """Print a shell script that completes commands, options and keys of an experiment.

    Example:
        bustseg completion bash > ~/.local/share/bash-completion/completions/bustseg

    Args:
        shell: the shell
    """
    import shtab  # the script contains all keys, so completion does not start bustseg

    print(shtab.complete(_whole_parser(), shell))
    return 0


def _whole_parser() -> argparse.ArgumentParser:
    """A parser of all verbs with their options, for shtab to read, not for parsing."""
    from bustseg import commands
    from bustseg.experiment import make_parser

    whole = argparse.ArgumentParser(prog="bustseg")
    whole.add_argument("--version", action="store_true", help="print the version")
    keys = [f"--{key}" for key in make_parser().get_defaults().keys(branches=True)]
    _add_verbs(whole.add_subparsers(), commands.__path__, f"{commands.__name__}.", keys)
    return whole


def _add_verbs(verbs: Any, path: Any, prefix: str, keys: list[str]) -> None:
    from bustseg.command_line import Docstring, add_arguments, rest_of

    for module in pkgutil.iter_modules(path, prefix):
        name = module.name.rpartition(".")[2]
        if module.ispkg:
            group = verbs.add_parser(name, help="work with data sets")
            _add_verbs(group.add_subparsers(), import_module(module.name).__path__, f"{module.name}.", keys)
            continue
        function = getattr(import_module(module.name), name)
        parser = verbs.add_parser(name, help=Docstring.of(function).summary.replace("%", "%%"), allow_abbrev=False)
        known = add_arguments(parser, function)
        if rest_of(function) is not None:
            for key in keys:
                if key not in known:
                    parser.add_argument(key, help="key of an experiment")
