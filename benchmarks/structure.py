"""Compare two versions of the code: size, import cycles, long functions, private names, parses of a config, start-up
time.

    git worktree add ../before fa6109b
    python benchmarks/structure.py ../before . --out docs/explanation/structure.md

Both run on this machine, in turn, with the packages of this environment.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LONG = 60
"""Number of lines from which a function counts as long."""

STARTS = {
    "bustseg --help": ["--help"],
    "bustseg predict --help": ["predict", "--help"],
    "bustseg fit --help": ["fit", "--help"],
}

LIGHT = {
    "bustseg --help": ["--help"],
    "bustseg predict --help": ["predict", "--help"],
    "bustseg export --help": ["export", "--help"],
    "bustseg compare --help": ["compare", "--help"],
}
"""Commands without computation, whose imports are counted."""

HEAVIEST = 4
"""Number of packages that are listed for a command's imports."""

REASONS = """
import json
from tests.test_private_parts import PARTS
print(json.dumps({"parts": [(str(part), part.used, part.reason) for part in PARTS]}))
"""

CIRCLES = """
import grimp, json, networkx
graph = grimp.build_graph("bustseg", cache_dir=None, exclude_type_checking_imports=True)
edges = [
    (module, other)
    for module in graph.modules
    for other in graph.find_modules_directly_imported_by(module)
    if "bustseg" not in (module, other)
]
folder = lambda module: module.split(".")[1]
folders = [(folder(a), folder(b)) for a, b in edges if folder(a) != folder(b)]
knots = lambda pairs: sorted(
    (sorted(knot) for knot in networkx.strongly_connected_components(networkx.DiGraph(pairs)) if len(knot) > 1), key=len
)
print(json.dumps({"modules": knots(edges), "folders": knots(folders)}))
"""

PARSES = """
import json, sys
import jsonargparse
parses, first = 0, None
def names_a_network(action):
    inner = action.choices.values() if isinstance(action.choices, dict) else ()  # of a parser with subcommands
    return action.dest.startswith("model") or any(map(names_a_network, [a for p in inner for a in p._actions]))
def counted(name):
    original = getattr(jsonargparse.ArgumentParser, name)
    def wrapper(self, *args, **kwargs):
        global parses
        outermost = not getattr(jsonargparse.ArgumentParser, "inside", False)
        jsonargparse.ArgumentParser.inside = True
        has_network = any(map(names_a_network, self._actions))
        parses += outermost and has_network
        try:
            return original(self, *args, **kwargs)
        finally:
            if outermost:
                jsonargparse.ArgumentParser.inside = False
    setattr(jsonargparse.ArgumentParser, name, wrapper)
for name in ("parse_args", "parse_object", "parse_path", "parse_string", "parse_known_args"):
    counted(name)
import optuna
ask = optuna.study.Study.ask
def asked(self, *args, **kwargs):
    global first
    first = parses if first is None else first
    return ask(self, *args, **kwargs)
optuna.study.Study.ask = asked
optimize = optuna.study.Study.optimize
from bustseg.cli import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "before": first, "all": parses}))
"""

SWEEP = """
config: {config}
overrides:
  trainer.max_epochs: 1
space:
  model.optimizer.init_args.lr: [1.0e-4, 1.0e-3]
objective: val/loss
direction: minimize
"""


def environment(checkout: Path) -> dict[str, str]:
    """The environment in which a checkout's package is imported."""
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def trees(checkout: Path) -> Iterator[tuple[Path, ast.Module, int]]:
    """Path in the package, syntax tree and number of lines of each of its files."""
    for path in sorted((checkout / "bustseg").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(checkout / "bustseg"), ast.parse(text), len(text.splitlines())


def sizes(checkout: Path) -> dict[str, tuple[int, int]]:
    """Files and lines by folder, ``.`` for the top level."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path, _, count in trees(checkout):
        folder = path.parts[0] if len(path.parts) > 1 else "."
        files[folder] += 1
        lines[folder] += count
    return {folder: (files[folder], lines[folder]) for folder in files}


def long_functions(checkout: Path) -> list[str]:
    """Names of functions with more than :data:`LONG` lines, including nested ones."""
    found = []
    for path, tree, _ in trees(checkout):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - min([node.lineno, *(line.lineno for line in node.decorator_list)]) + 1
                if length > LONG:
                    found.append(f"{path.as_posix()}: {node.name} ({length})")
    return found


def private_parts(checkout: Path) -> list[str]:
    """Names with an underscore that the package uses from other libraries, imported or as attributes."""
    own: set[str] = set()
    asked: set[str] = set()
    for _, tree, _ in trees(checkout):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("bustseg"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                asked.update(f"{node.module}: {name}" for name in names if is_private(name))
            elif isinstance(node, ast.Import):
                asked.update(alias.name for alias in node.names if any(map(is_private, alias.name.split("."))))
    for _, tree, _ in trees(checkout):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                asked.add(node.attr)
    return sorted(asked)


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def asked(checkout: Path, code: str, *args: str, folder: Path) -> dict[str, object]:
    """The last line that code prints, parsed as JSON."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        check=False, cwd=folder, env=environment(checkout), capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        sys.exit(ran.stderr[-2000:])
    found: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return found


def parses(checkout: Path) -> dict[str, object]:
    """How often a sweep of two trials parses an experiment, before its first trial and in total."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "sweep.yaml").write_text(SWEEP.format(config=checkout.resolve() / "tests" / "configs" / "tiny.yaml"))
        phantoms = folder / "phantoms"
        make = (
            "import sys; from bustseg.data.phantom import write_phantoms; write_phantoms(sys.argv[1], 12, 1, (64, 64))"
        )
        command = [sys.executable, "-c", make, str(phantoms)]
        subprocess.run(command, check=True, cwd=folder, env=environment(checkout))
        return asked(checkout, PARSES, "sweep", "--config", "sweep.yaml", "--data.root", str(phantoms), folder=folder)


def imports(checkout: Path, args: list[str]) -> tuple[int, float, str]:
    """Number of modules that a command imports, the seconds this takes, and the packages that take most of them."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bustseg.cli", *args],
        check=True, cwd=checkout, env=environment(checkout), capture_output=True, text=True,
    )  # fmt: skip
    spent: Counter[str] = Counter()
    count = 0
    for line in ran.stderr.splitlines():
        own, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        if own.isdigit():  # not the head
            count += 1
            spent[name.partition(".")[0]] += int(own)
    heaviest = ", ".join(f"{name} {1e-6 * own:.2f} s" for name, own in spent.most_common(HEAVIEST))
    return count, 1e-6 * spent.total(), heaviest


def start_up(checkouts: list[Path], times: int) -> dict[str, list[float]]:
    """Median seconds of each command by checkout; they take turns, so that other load affects both."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for turn in range(times + 1):
        for name, args in STARTS.items():
            for number, checkout in enumerate(checkouts):
                begun = time.perf_counter()
                command = [sys.executable, "-m", "bustseg.cli", *args]
                # in the checkout, since Python's working folder comes before the path
                subprocess.run(command, check=True, cwd=checkout, env=environment(checkout), stdout=subprocess.DEVNULL)
                if turn:  # the first start reads from disk
                    seconds.setdefault((name, number), []).append(time.perf_counter() - begun)
    return {name: [statistics.median(seconds[name, number]) for number in range(len(checkouts))] for name in STARTS}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit(checkout: Path) -> str:
    """The checkout's commit, short."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, cwd=checkout, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--times", type=int, default=5, help="starts of each command; the median is reported")
    known = parser.parse_args()
    checkouts = [known.before.resolve(), known.after.resolve()]
    names = [commit(checkout) for checkout in checkouts]
    size = [sizes(checkout) for checkout in checkouts]
    circles = [asked(checkout, CIRCLES, folder=checkout) for checkout in checkouts]
    private = [private_parts(checkout) for checkout in checkouts]
    long = [long_functions(checkout) for checkout in checkouts]
    parsed = [parses(checkout) for checkout in checkouts]
    times = start_up(checkouts, known.times)
    loaded = {name: [imports(checkout, args) for checkout in checkouts] for name, args in LIGHT.items()}
    reasons: list[tuple[str, str, str]] = asked(checkouts[1], REASONS, folder=checkouts[1])["parts"]  # type: ignore[assignment]

    def row(name: str, values: list[object]) -> str:
        return f"| {name} | {values[0]} | {values[1]} |"

    def knots(found: object) -> str:
        groups: list[list[str]] = found  # type: ignore[assignment]
        return f"{len(groups)} ({', '.join(f'of {len(group)}' for group in groups)})" if groups else "0"

    lines = [
        "# The structure, before and after",
        "",
        "This page compares the structure of the package before and after it was reorganised: a configuration is",
        "resolved once and passed on as one object, each command is one file, and a layer imports only from those",
        "below it (`CONTRIBUTING.md` lists the layers in order).",
        "",
        f"`python benchmarks/structure.py BEFORE AFTER --out docs/explanation/structure.md --times {known.times}`",
        f"generated this page from the commits {names[0]} and {names[1]} with Python {platform.python_version()}",
        f"on {os.cpu_count()} cores ({processor()}), with a load of {os.getloadavg()[0]:.0f} when it ended.",
        f"Times are medians of {known.times} starts each, which alternate, so that other load affects both alike.",
        "",
        f"| | {names[0]} | {names[1]} |",
        "| --- | --- | --- |",
        row("files of the package", [sum(files for files, _ in found.values()) for found in size]),
        row("lines", [sum(count for _, count in found.values()) for found in size]),
        row("files at the top", [found["."][0] for found in size]),
        row("folders that import each other in a circle", [knots(found["folders"]) for found in circles]),
        row(
            "modules that import each other in a circle (not for annotations alone)",
            [knots(found["modules"]) for found in circles],
        ),
        row("private names of other libraries", [len(found) for found in private]),
        row(f"functions over {LONG} lines", [len(found) for found in long]),
        row("parses of an experiment before a sweep's first trial", [found["before"] for found in parsed]),
        row("parses in a sweep of two trials", [found["all"] for found in parsed]),
        *(row(f"`{name}`", [f"{value:.2f} s" for value in values]) for name, values in times.items()),
        "",
        "## Files and lines per folder",
        "",
        f"| folder | {names[0]} | {names[1]} |",
        "| --- | --- | --- |",
    ]
    for folder in sorted({*size[0], *size[1]}):
        values = [f"{found[folder][0]} files, {found[folder][1]} lines" if folder in found else "" for found in size]
        lines.append(row(f"`{folder}`" if folder != "." else "(top)", list(values)))
    lines += ["", f"## Functions over {LONG} lines that are left", "", *(f"- `{name}`" for name in long[1])]
    lines += ["", "## What the light commands import", "", "By `python -X importtime`."]
    lines += ["", f"| command | {names[0]} | {names[1]} | most of it now |", "| --- | --- | --- | --- |"]
    for name, found in loaded.items():
        cells = [f"{count} modules, {seconds:.2f} s" for count, seconds, _ in found]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {found[1][2]} |")
    lines += ["", "## Private names of other libraries that are left", ""]
    lines += ["`tests/test_private_parts.py` contains this list, and reports names that an upgrade has removed."]
    lines += ["", "| part | used by | why |", "| --- | --- | --- |"]
    lines += [f"| `{part}` | `{used}` | {reason} |" for part, used, reason in reasons]
    known.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
