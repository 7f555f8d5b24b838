"""The command line, `bustseg VERB ...`: it dispatches to the verbs; bad input gives one line and exit code 2."""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from bustseg import __version__, bounds
from bustseg.command_line import Docstring, beginning, call
from bustseg.errors import UserError, in_one_line
from bustseg.notices import one_line_each
from bustseg.trust import taken_out, trusting

VERBS = (
    *("fit", "validate", "test", "summary", "cv", "sweep", "reproduce", "compare", "explain"),
    *("data phantom", "data fetch", "data check", "data split"),
    *("configs", "doctor", "completion", "predict", "serve", "live", "node", "export", "ensemble", "bench"),
    *("ui", "register", "sync"),
)
"""Each is a function in a module of :mod:`bustseg.commands`, which is imported only when it is called."""


def run(args: Sequence[str]) -> int:
    """Run one verb and return its exit code; errors are raised as exceptions."""
    for verb in VERBS:
        words = verb.split()
        if list(args[: len(words)]) == words:
            module = import_module(f"bustseg.commands.{'.'.join(words)}")
            with beginning(verb, args):
                return call(getattr(module, words[-1]), args[len(words) :], f"bustseg {verb}")
    group = [word for word in ("data",) if args[:1] == [word]]
    given = next((word for word in args[len(group) :] if not word.startswith("-")), None)
    if given is not None or not {"-h", "--help", "--version"} & set(args):
        here = [verb.split()[len(group)] for verb in VERBS if verb.split()[: len(group)] == group]
        close = difflib.get_close_matches(given or "", here, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(dict.fromkeys(here))}"
        raise UserError(f"{f'no command {given}' if given else 'no command is given'}: {hint}")
    _overview(group).parse_args(list(args[len(group) :]))
    return 0


def _overview(group: list[str]) -> argparse.ArgumentParser:
    """The parser of the overview: every verb with one line about it."""
    text = "Breast-tumour segmentation in ultrasound: train, test, compare, explain, deploy."
    example = "example: bustseg fit --config configs/quickstart.yaml"
    parser = argparse.ArgumentParser(prog=" ".join(["bustseg", *group]), description=text, epilog=example)
    parser.add_argument("--version", action="version", version=f"bustseg {__version__}")
    verbs = parser.add_subparsers(metavar="VERB")
    for verb in VERBS:
        words = verb.split()
        if words[: len(group)] == group:
            function = getattr(import_module(f"bustseg.commands.{'.'.join(words)}"), words[-1])
            verbs.add_parser(" ".join(words[len(group) :]), help=Docstring.of(function).summary.replace("%", "%%"))
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the command line; ``args`` as in ``sys.argv[1:]``. Returns the exit code."""
    arguments = list(map(str, sys.argv[1:] if args is None else args))
    debug = "--debug" in arguments
    try:
        packages, arguments = taken_out([argument for argument in arguments if argument != "--debug"])
        for argument in arguments:
            bounds.check_text(argument)
        with nullcontext() if debug else one_line_each(), trusting(packages):
            return run(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        return _fail(error, debug)


def _fail(error: BaseException, debug: bool) -> int:
    from bustseg.progress import error_console, print_error

    if debug:
        # as plain text, so that credentials can be removed from it, and not as a rich traceback
        error_console.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
    message, code = in_one_line(error)
    print_error(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
