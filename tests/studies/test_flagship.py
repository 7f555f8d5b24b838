"""studies/flagship.py: what it asks of the command line, and that nothing is done, nor the test looked at, twice."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Store:
    """Of an MLflow client what the script asks it; `bustseg` leaves in it the runs that the real command would."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.commands: list[tuple[str, ...]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments: list[str], wanted: str, max_results: int) -> list[Any]:
        return [run for name, run in self.runs.items() if f"run_name = '{name}'" in wanted]

    def bustseg(self, *args: str) -> str:
        self.commands.append(args)
        if "--tracking.run_name" in args:
            name = args[args.index("--tracking.run_name") + 1]
            info, data = SimpleNamespace(run_id=f"id of {name}"), SimpleNamespace(tags={}, metrics={})
            run = self.runs.setdefault(name, SimpleNamespace(info=info, data=data))
            if args[0] == "validate":
                run.data.tags |= {"chosen.threshold": "0.4", "chosen.min_area": "0.001", "chosen.dice_lesion": "0.8"}
            if args[0] == "test":
                run.data.metrics["test/dice_lesion"] = 0.75
        return ""

    @property
    def verbs(self) -> list[str]:
        return [command[0] for command in self.commands]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def flagship(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> ModuleType:
    from studies import flagship

    monkeypatch.setattr(flagship, "bustseg", store.bustseg)
    monkeypatch.chdir(tmp_path)
    return flagship


def measure(flagship: ModuleType, store: Store, encoders: list[str]) -> list[dict[str, Any]]:
    call: Callable[..., list[dict[str, Any]]] = flagship.measure
    return call(store, "lesion 0", ["--data.split", "lesion"], encoders)


def test_one_network_is_trained_chosen_and_tested_with_what_was_chosen(flagship: ModuleType, store: Store) -> None:
    rows = measure(flagship, store, ["lite2"])

    assert store.verbs == ["fit", "validate", "test"]
    fit, validate, test = store.commands
    assert "[timm/tf_efficientnet_lite2]" in fit
    assert "lesion" in fit
    assert validate[2] == test[2] == "id of flagship lesion 0, lite2"
    assert test[test.index("--model.threshold") + 1] == "0.4"
    assert test[test.index("--model.postprocess.min_area_px_relative") + 1] == "0.001"
    assert [(row["images"], row["dice_lesion"]) for row in rows] == [("val", 0.8), ("test", 0.75)]


def test_several_networks_are_joined_and_only_the_ensemble_is_tested(flagship: ModuleType, store: Store) -> None:
    measure(flagship, store, ["lite2", "lite0"])

    assert store.verbs == ["fit", "fit", "ensemble", "validate", "test"]
    ensemble = store.commands[2]
    assert ensemble[1:3] == ("id of flagship lesion 0, lite2", "id of flagship lesion 0, lite0")
    assert all(command[2] == ensemble[-1] for command in store.commands[3:])
    members = [run for name, run in store.runs.items() if name.count(",") == 1 and "+" not in name]
    assert len(members) == 2
    assert not any(run.data.metrics for run in members)


def test_what_is_there_is_neither_trained_nor_tested_again(flagship: ModuleType, store: Store) -> None:
    first = measure(flagship, store, ["lite2"])
    done = len(store.commands)

    assert flagship.markdown(measure(flagship, store, ["lite2"])) == flagship.markdown(first)
    assert len(store.commands) == done
    measure(flagship, store, ["lite2", "lite0"])
    assert store.verbs[done:] == ["fit", "ensemble", "validate", "test"]
