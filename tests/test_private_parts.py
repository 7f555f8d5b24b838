"""The private parts of other libraries that bustseg rests on, each with its reason, and whether they are still there.

Everything else is used as its library documents it. Where an upgrade takes a private part away, the first test says
which; the others find private parts that are used without being listed here.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import bustseg

PACKAGE = Path(bustseg.__file__).parent


@dataclass(frozen=True)
class Part:
    """A private part.

    Attributes:
        owner: module, or class by its dotted name
        name: of the attribute; for a class also one that it gives its objects
        used: module of bustseg that uses it
        reason: why no public part serves
    """

    owner: str
    name: str
    used: str
    reason: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


_ALL_AT_ONCE = "one kernel for all tensors of a network, where the public operations take one for each"
_GUARD = "jsonargparse has no way to say which classes a stored configuration may name, so its import is guarded"
_KEYS = "the parser tells its keys' names and defaults, and neither their types nor their descriptions"

PARTS = (
    Part("torch", "_foreach_copy_", "bustseg.callbacks.averaging", _ALL_AT_ONCE),
    Part("torch", "_foreach_sub", "bustseg.callbacks.averaging", _ALL_AT_ONCE),
    Part("torch", "_foreach_mul_", "bustseg.callbacks.averaging", _ALL_AT_ONCE),
    Part("torch", "_foreach_add_", "bustseg.callbacks.averaging", _ALL_AT_ONCE),
    Part(
        "torch.Tensor",
        "_is_view",
        "bustseg.models.activations",
        "an activation in place must not be given a view, and only autograd knows what is one",
    ),
    Part(
        "lightning.pytorch.callbacks.WeightAveraging",
        "_device",
        "bustseg.callbacks.averaging",
        "its argument takes a fixed device, and the trainer's is known when the fit begins",
    ),
    Part(
        "lightning.pytorch.loggers.MLFlowLogger",
        "_run_name",
        "bustseg.runs.tracker",
        "the name that was asked for, which a run that no server has yet is written down with",
    ),
    Part(
        "lightning.pytorch.loggers.MLFlowLogger",
        "_mlflow_client",
        "bustseg.runs.tracker",
        "the client without a run; the public `experiment` begins one",
    ),
    Part(
        "lightning.pytorch.loggers.MLFlowLogger",
        "_run_id",
        "bustseg.runs.tracker",
        "the run without beginning one, and another process's run for processes that log nothing",
    ),
    Part(
        "lightning.pytorch.loggers.MLFlowLogger",
        "_experiment_name",
        "bustseg.runs.tracker",
        "the public `name` is the experiment's id",
    ),
    Part(
        "torchmetrics.Metric",
        "_computed",
        "bustseg.metrics.rows",
        "merge_state leaves the result from before the merge in its place",
    ),
    Part(
        "torchmetrics.Metric",
        "_is_synced",
        "bustseg.metrics.rows",
        "a metric that holds the rows of all processes must not gather them again",
    ),
    Part(
        "pydicom.filereader",
        "_read_file_meta_info",
        "bustseg.data.dicom",
        "where a deflated data set begins; the public function closes the file and tells no position",
    ),
    Part("pynetdicom", "_config", "bustseg.node.node", "so it is called where pynetdicom documents its settings"),
    Part("argparse.ArgumentParser", "_actions", "bustseg.config_schema", _KEYS),
    Part("jsonargparse._typehints.ActionTypeHint", "_typehint", "bustseg.config_schema", _KEYS),
    Part("jsonargparse._util", "import_object", "bustseg.trust", _GUARD),
    Part("jsonargparse._typehints", "import_object", "bustseg.trust", _GUARD),
)


def find(path: str) -> Any:
    """The module or class of a dotted name."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def has(owner: Any, name: str) -> bool:
    """Whether a module or class has an attribute, or gives it to its objects."""
    if hasattr(owner, name) or name in getattr(owner, "__annotations__", ()):
        return True
    return inspect.isclass(owner) and re.search(rf"self\.{name}\b", inspect.getsource(owner)) is not None


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_private_part_is_still_there(part: Part) -> None:
    assert has(find(part.owner), part.name), f"{part.used} rests on {part}, which is gone: {part.reason}"
    source = Path(str(inspect.getsourcefile(import_module(part.used)))).read_text()
    assert part.name in source, f"{part.used} no longer uses {part}: take it from the list"


def test_no_other_private_part_is_taken_from_a_module_or_object() -> None:
    listed = {(part.used, part.name) for part in PARTS}
    taken = set()
    for path in PACKAGE.rglob("*.py"):
        tree, name = ast.parse(path.read_text()), module_name(path)
        nodes = list(ast.walk(tree))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                    taken |= {(name, node.attr)} if node.attr not in own else set()
            elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("bustseg"):
                inside = any(map(is_private, str(node.module).split(".")))
                taken |= {(name, alias.name) for alias in node.names if inside or is_private(alias.name)}
            elif isinstance(node, ast.Import):
                taken |= {(name, alias.name) for alias in node.names if any(map(is_private, alias.name.split(".")))}
    # modules whose functions are listed, and names that belong to no library's inside
    allowed = {("bustseg.trust", module) for module in ("jsonargparse._util", "jsonargparse._typehints")}
    allowed |= {(name, public) for name, public in taken if public in ("_exit", "_replace")}
    unlisted = sorted(taken - listed - allowed)
    assert not unlisted, unlisted


def test_no_other_private_part_is_inherited() -> None:
    listed = {(part.used, part.name) for part in PARTS}
    inherited = set()
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not node.bases:
                continue
            found = getattr(import_module(name), node.name, None)
            used = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and is_private(part.attr)}
            used |= {part.name for part in node.body if isinstance(part, ast.FunctionDef) and is_private(part.name)}
            for base in inspect.getmro(found)[1:] if inspect.isclass(found) else ():
                if base.__module__.partition(".")[0] in ("lightning", "torch", "torchmetrics", "mlflow", "optuna"):
                    inherited |= {(name, attribute) for attribute in used if has(base, attribute)}
    unlisted = sorted(inherited - listed)
    assert not unlisted, unlisted
