"""The long form: ``python -m tests.faults [PYTEST OPTIONS]`` runs every fault test and writes the table of promises.

The table is in ``docs/explanation/reliability.md``. Rows of promises that were not tried this time stay; each
says the day and the commit that it is from.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "explanation" / "reliability.md"
BEGIN, END = "<!-- made by python -m tests.faults -->", "<!-- end of what python -m tests.faults makes -->"
HEADER = ("| promise | cases | outcome | measured |", "| --- | --- | --- | --- |")


class Outcomes:
    """Collects what became of each promise, as a plugin of pytest."""

    def __init__(self) -> None:
        self.promises: dict[str, str] = {}
        self.found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        """Names of cases by promise and outcome"""
        self.figures: dict[str, list[str]] = defaultdict(list)
        """What the cases of a promise have measured"""
        self.cases: dict[str, int] = defaultdict(int)
        """How many cases a promise has; a test counts as one, unless it says how many it has tried"""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which promise each case is of."""
        for item in items:
            if (marker := item.get_closest_marker("promise")) is not None:
                self.promises[item.nodeid] = str(marker.args[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a case's outcome; one that could not be set up has failed."""
        promise = self.promises.get(report.nodeid)
        if promise is None or (report.when != "call" and report.passed):
            return
        case = found[1] if (found := re.search(r"\[(.*)\]$", report.nodeid)) else "it"
        self.found[promise][report.outcome].append(case)
        said = dict(report.user_properties)
        self.cases[promise] += int(said.get("cases", 1))  # type: ignore[call-overload]
        if (text := said.get("figure")) is not None:
            self.figures[promise].append(str(text) if case == "it" or "cases" in said else f"{case}: {text}")


def cell(outcomes: dict[str, list[str]], figures: list[str]) -> str:
    """What the table says of one promise."""
    failed, passed, skipped = (outcomes.get(name, []) for name in ("failed", "passed", "skipped"))
    if failed:
        return f"**{len(failed)} of {len(failed) + len(passed)} do not hold**: {', '.join(failed)}"
    if not passed:
        return "not tried on this machine"
    parts = ["all hold", *([f"{len(skipped)} not tried on this machine"] if skipped else []), *figures]
    return "; ".join(parts)


def write_page(outcomes: Outcomes) -> None:
    """Renew the rows of the promises that were tried."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in old.splitlines() if line.startswith("| ")}
    for title in ("promise", "---"):
        rows.pop(title, None)
    commit = subprocess.run(
        ["git", "describe", "--always", "--abbrev=8", "--exclude=*"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.strip()
    measured = f"{datetime.date.today()}, {commit}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    for promise, found in outcomes.found.items():
        rows[promise] = (
            f"| {promise} | {outcomes.cases[promise]} | {cell(found, outcomes.figures[promise])} | {measured} |"
        )
    table = "\n".join([*HEADER, *rows.values()])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Run the long form; the exit code is pytest's."""
    os.environ["BUSTSEG_FAULTS"] = "long"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(REPOSITORY)
    outcomes = Outcomes()
    code = pytest.main(
        [str(Path(__file__).parent), "-m", "faults", "--timeout", "0", *sys.argv[1:]], plugins=[outcomes]
    )
    if outcomes.found:
        write_page(outcomes)
        print(f"written: {PAGE.relative_to(REPOSITORY)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
