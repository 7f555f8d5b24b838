"""Run the tests that attack `bustseg serve`, and write a summary into docs/how-to/serve.md.

    python benchmarks/serve_checks.py

Needs Chromium for the page's accessibility. A test states the number of its cases with ``record_property("cases",
...)``, and the tool with ``record_property("by", ...)``; by default it counts as one case.
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest
from measured import REPOSITORY, Measurement, add_page, write

SERVER, PAGE = "tests/serve/test_server.py::", "tests/serve/test_page.py::"
CHECKS = {
    "requests that the OpenAPI document allows and forbids: an answer that it names, never 5xx": (
        f"{SERVER}test_requests_made_from_the_openapi_document",
    ),
    "accessibility of the page (empty, with an image, with its keys; light and dark; wide and a tablet's width) and of "
    "live: no violations": (f"{PAGE}test_axe_finds_nothing", f"{PAGE}test_the_page_of_live_shows_the_newest_frame"),
    "hostile files: 4xx that names no path": (f"{SERVER}test_hostile_files_get_a_4xx_that_names_no_path",),
    "malformed forms: 4xx": (f"{SERVER}test_malformed_forms_get_a_4xx",),
    "requests of other sites (`Origin`, `Sec-Fetch-Site`) and by other names (DNS rebinding): 403, 421": (
        f"{SERVER}test_other_names_of_the_server_and_other_sites_are_refused",
    ),
    "path traversal: 404, 422": (f"{SERVER}test_paths_lead_nowhere_else",),
    "slow and broken clients: 408, and nobody else is held up": (
        f"{SERVER}test_slow_and_broken_clients_hold_nobody_up",
    ),
    "requests that are too large, with and without a length: 413": (
        f"{SERVER}test_too_large_requests_are_refused_with_and_without_a_length",
    ),
    "clients at once: the right mask, or 429": (
        f"{SERVER}test_200_clients_at_once_get_the_right_answer_or_are_told_to_wait",
    ),
}


class Outcomes:
    """A pytest plugin that collects the outcome of each test."""

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the report of the test itself, or of the setup that prevented it."""
        if report.when == "call" or not report.passed:
            self.reports.append(report)

    def row(self, what: str, tests: tuple[str, ...]) -> str:
        """A line of the table."""
        own = [report for report in self.reports if report.nodeid.partition("[")[0] in tests]
        said = [dict(report.user_properties) for report in own]
        cases = sum(int(one.get("cases", 1)) for one in said)  # type: ignore[call-overload]
        by = ", ".join(sorted({str(one["by"]) for one in said if "by" in one}))
        failed = sum(report.failed for report in own)
        skipped = sum(report.skipped for report in own)
        outcome = f"**{failed} tests failed**" if failed else "not tried" if skipped or not own else "all"
        return f"| {what} | {by} | {cases} | {outcome} |"


def main() -> int:
    """Run the tests; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_page(parser, "docs/how-to/serve.md")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    measurement, outcomes = Measurement(), Outcomes()
    tests = sorted({test for tests in CHECKS.values() for test in tests})
    code = pytest.main(["--timeout", "0", "-p", "no:cacheprovider", *tests], plugins=[outcomes])
    lines = ["| what was tried | by | cases | held |", "| --- | --- | --- | --- |"]
    lines += [outcomes.row(what, tests) for what, tests in CHECKS.items()]
    lines += ["", f"`python benchmarks/serve_checks.py`; {measurement.told()}."]
    write(options.page, "python benchmarks/serve_checks.py", lines)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
