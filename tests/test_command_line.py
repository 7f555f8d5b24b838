"""The commands: their options are a contract, each explains itself, and none brings more than it needs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest

from bustseg.cli import VERBS
from bustseg.command_line import Docstring, ExperimentOptions, Option, call, make_parser
from bustseg.errors import UserError
from tests.conftest import CONFIGS, REPOSITORY

Bustseg = Callable[..., tuple[int, str, str]]


def command(verb: str) -> Callable[..., int]:
    words = verb.split()
    return getattr(import_module(f"bustseg.commands.{'.'.join(words)}"), words[-1])


# every spelling that a release has had; more may come, none may go
CONTRACT = {
    "fit": ("--ckpt_path", []),
    "validate": ("--ckpt_path", []),
    "test": ("--ckpt_path", []),
    "summary": ("--json", []),
    "cv": ("--folds --resume", []),
    "sweep": ("--config --resume --storage --study --workers", []),
    "reproduce": (
        "--devices --encoder_weights --family --max_epochs --only --out --plan --resume --seeds --table",
        [],
    ),
    "data phantom": ("--n --seed", [None]),
    "data fetch": ("--archive --sha256 --url", [None]),
    "data check": ("--json --report --source --threshold", ["?"]),
    "data split": (
        "--check --curated_list --folds --kfold_of --out --scheme --seed --source --threshold",
        ["?"],
    ),
    "compare": ("--baseline --convention --experiment --groups --metric --out", ["*"]),
    "explain": ("--layer --list-layers --method --model --out --size --tolerance", ["*"]),
    "export": (
        "--data.root --format --images --max_dice_drop --max_difference --min_area --out --overwrite --precision "
        "--threshold",
        [None],
    ),
    "ensemble": ("--image_size --out --overwrite", ["+"]),
    "bench": (
        "--backends --batch --data.root --images --json --markdown --precisions --rounds --size --threads",
        ["+"],
    ),
    "predict": (
        "--batch_size --clip_format --dicom_seg --model --no-overlays --no-recursive --out --overwrite "
        "--probabilities --recursive --resume --smooth --threshold --workers",
        ["+"],
    ),
    "serve": ("--allowed_hosts --batch_size --corrections --host --max_mb --max_requests --model --port", []),
    "live": (
        "--device --host --model --no-mirror --no-pace --no-page --port --repeat --seconds --smooth --threshold",
        [],
    ),
    "node": (
        "--ae --allow --host --max_waiting --model --no-capture --port --seconds --send_to --spool --threshold",
        [],
    ),
    "ui": ("--host --port --uri", []),
    "register": ("--alias --name", [None]),
    "sync": ("--uri", []),
    "configs": ("--schema", ["?"]),
    "doctor": ("", []),
    "completion": ("", ["?"]),
}


@pytest.mark.parametrize("verb", CONTRACT)
def test_options_keep_their_spelling(verb: str) -> None:
    options, positional = CONTRACT[verb]
    actions = make_parser(command(verb), verb)._actions
    assert set(options.split()) <= {name for action in actions for name in action.option_strings}
    assert [action.nargs for action in actions if not action.option_strings] == positional


def test_every_file_is_a_command_and_every_command_has_one() -> None:
    folder = REPOSITORY / "bustseg" / "commands"
    files = {" ".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py")}
    assert {name for name in files if "__init__" not in name} == set(VERBS)
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bustseg"):
                assert node.module in ("bustseg.command_line", "bustseg.errors"), f"{path.name} imports {node.module}"


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_says_what_its_options_are_with_an_example(verb: str) -> None:
    function = command(verb)
    docstring = Docstring.of(function)
    assert docstring.summary.endswith(".")
    assert docstring.example.startswith(f"bustseg {verb}")
    described = {name.strip() for names in docstring.arguments for name in names.split(",")}
    assert described == set(inspect.signature(function).parameters)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("fit", "validate", "test", "summary")])
def test_help_ends_in_an_example(verb: str, bustseg: Bustseg) -> None:
    code, out, _ = bustseg(*verb.split(), "--help")
    assert code == 0
    assert out.startswith(f"usage: bustseg {verb} ")
    assert f"example: bustseg {verb}" in out


def test_help_of_a_training_lists_all_that_can_be_configured(bustseg: Bustseg) -> None:
    code, out, _ = bustseg("fit", "--help-all")
    assert code == 0
    assert out.startswith("usage: bustseg fit ")
    for option in ("--config", "--trainer.max_epochs", "--data.batch_size", "--tracking.experiment", "--ckpt_path"):
        assert f"{option} " in out
    assert "example: bustseg fit --config" in " ".join(out.split())


def test_choices_are_those_that_there_are() -> None:
    from bustseg.deploy.exported import BACKENDS, PRECISIONS

    choices = {
        action.dest: action.choices
        for verb in ("export", "bench")
        for action in make_parser(command(verb), verb)._actions
        if action.choices
    }
    assert choices == {"precision": PRECISIONS, "precisions": PRECISIONS, "backends": BACKENDS}


WRONG = {
    "nothing": ([], "no command is given: there are fit, validate"),
    "unknown": (["predic", "x"], "no command predic: did you mean predict?"),
    "half": (["data"], "no command is given: there are phantom, fetch, check, split"),
    "unknown half": (["data", "chek"], "no command chek: did you mean check?"),
    "missing": (["predict"], "the following arguments are required: INPUT, --out (see `bustseg predict --help`)"),
    "one of two": (["predict", "x", "--out", "y", "--resume", "--overwrite"], "not allowed with argument"),
    "no number": (["data", "phantom", "x", "--n", "many"], "argument --n: invalid int value: 'many'"),
    "no choice": (["data", "split", "x", "--scheme", "tf"], "argument --scheme: invalid choice: 'tf'"),
    "unknown option": (["ui", "--prot", "1"], "no option --prot: did you mean --port? (see `bustseg ui --help`)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_end_in_one_line(case: str, bustseg: Bustseg) -> None:
    args, message = WRONG[case]
    code, out, err = bustseg(*args)
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["data", "--help"], ["predict", "--help"], ["sweep", "-h"]]
)
def test_words_about_commands_bring_no_library(args: list[str]) -> None:
    program = (
        "import sys; from bustseg.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'lightning', 'mlflow', 'optuna', 'jsonargparse', 'pandas', 'rich', 'cv2'}; "
        "sys.exit(code or ', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout


# from a signature to options


def example(
    files: list[Path],
    *,
    size: list[int] | None = None,
    kind: Literal["a", "b"] = "a",
    tag: Annotated[list[str] | None, Option(repeated=True)] = None,
    deep: bool = False,
    wide: bool = True,
    count: int = 3,
    root: Annotated[str | None, Option(names=("--data.root",), metavar="ROOT")] = None,
    options: ExperimentOptions,
) -> int:
    """Does things with files.

    Example:
        bustseg example a --size 1 2

    Args:
        files: to do things with,
            which may be many
        size: of them
        kind: one of two
        tag: a word
        deep: whether deep
        wide: whether wide
        count: 100% of them
        root: of the data
        options: all others
    """
    SEEN.append((files, size, kind, tag, deep, wide, count, root, options))
    return 7


SEEN: list[tuple[object, ...]] = []


def test_words_become_the_functions_arguments() -> None:
    SEEN.clear()
    args = ["a", "~/b", "--size", "1", "2", "--kind", "b", "--tag", "x", "--tag=y", "--deep", "--no-wide"]
    assert call(example, [*args, "--data.root", "z", "--lr", "1e-3", "--x=y", "-c", "f"], "bustseg example") == 7
    assert call(example, ["a"], "bustseg example") == 7
    files = [Path("a"), Path("~/b").expanduser()]
    assert [
        (files, [1, 2], "b", ["x", "y"], True, False, 3, "z", ["--lr", "1e-3", "--x=y", "-c", "f"]),
        ([Path("a")], None, "a", None, False, True, 3, None, []),
    ] == SEEN


def test_an_option_of_the_experiment_is_not_taken_for_a_shorter_one() -> None:
    SEEN.clear()
    call(example, ["a", "--counted", "9"], "bustseg example")
    assert SEEN[0][-3:] == (3, None, ["--counted", "9"])
    with pytest.raises(UserError, match=r"argument --count: invalid int value: 'x' \(see `bustseg example --help`\)"):
        call(example, ["a", "--count", "x"], "bustseg example")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("fit --ckpt x", "no option --ckpt: did you mean --ckpt_path? (see `bustseg fit --help`)"),
        ("validate --ckpt=x", "no option --ckpt: did you mean --ckpt_path? (see `bustseg validate --help`)"),
        ("fit --conf x.yaml", "unknown config key `conf`: did you mean `config`?"),
        ("cv --fold 3", "no option --fold: did you mean --folds? (see `bustseg cv --help`)"),
        ("sweep --work 3", "no option --work: did you mean --workers? (see `bustseg sweep --help`)"),
        ("predict x --outt y", "no option --outt: did you mean --out? (see `bustseg predict --help`)"),
        ("export x --m 1", "no option --m: did you mean --max_difference or --max_dice_drop or --min_area?"),
        ("predict x --out y --quick", "no option --quick (see `bustseg predict --help`)"),
        ("data split x --sch paper", "no option --sch: did you mean --scheme? (see `bustseg data split --help`)"),
    ],
)
def test_an_option_that_is_cut_short_gets_a_hint(args: str, message: str, bustseg: Bustseg) -> None:
    code, _, err = bustseg(*args.split())
    assert code == 2
    assert " ".join(err.split()).startswith(f"error: {message}")
    assert "Traceback" not in err


def test_a_key_of_a_config_is_not_cut_short_either(bustseg: Bustseg) -> None:
    code, _, err = bustseg("fit", "--config", CONFIGS / "quickstart.yaml", "--trainer.max_epoch", 3)
    assert code == 2
    assert "unknown config key `trainer.max_epoch`" in err
    assert "`trainer.max_epochs`" in err


def test_a_docstring_is_the_help() -> None:
    docstring = Docstring.of(example)
    assert docstring.summary == "Does things with files."
    assert docstring.arguments["files"] == "to do things with, which may be many"
    text = " ".join(make_parser(example, "bustseg example").format_help().split())
    assert "100% of them (default 3)" in text
    assert "--kind {a,b} one of two (default a)" in text
    assert "--wide, --no-wide" in text
    assert "all others" in text
    assert get_args(ExperimentOptions)[0] == list[str]
