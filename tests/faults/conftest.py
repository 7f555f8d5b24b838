"""What the fault tests share: phantoms, a store's template, undisturbed runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults import harness


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the long form tries, unless it runs."""
    left_out = [item for item in items if item.get_closest_marker("long_form") is not None and not harness.LONG]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def few_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 tiny phantoms in BUSI's layout; read only."""
    from bustseg.data.phantom import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", n=12, seed=1, shape=(64, 64))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, few_phantoms: Path, cache_folder: Path) -> Path:
    """The database of a local store without runs."""
    world = harness.World(tmp_path_factory.mktemp("template") / "world", few_phantoms)
    world.run("sync", env={"BUSTSEG_CACHE": str(cache_folder)})
    return Path(shutil.copy(world.database, world.folder.parent / "template.db"))


@pytest.fixture
def world(tmp_path: Path, few_phantoms: Path, template: Path) -> harness.World:
    """A folder with an empty local store."""
    return harness.World(tmp_path / "world", few_phantoms, template)


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, few_phantoms: Path, template: Path, cache_folder: Path
) -> harness.Undisturbed:
    """What a fit of three epochs leaves when nothing happens to it."""
    world = harness.World(tmp_path_factory.mktemp("undisturbed") / "world", few_phantoms, template)
    ended = world.fit("--trainer.max_epochs", 3, env={"BUSTSEG_CACHE": str(cache_folder)})
    assert ended.code == 0, ended.err
    return harness.Undisturbed(harness.points(world.database), ended.seconds)
