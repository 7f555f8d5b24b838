"""Files that tools outside of Python read: workflows, issue forms, citation, and the one version."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import bustseg

ROOT = Path(__file__).parents[1]

FILES = {
    ".github/workflows/*.yml": "vendor.github-workflows",
    ".github/ISSUE_TEMPLATE/[!c]*.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "vendor.github-issue-config",
    "CITATION.cff": "vendor.citation-file-format",
}
"""Patterns of files, and the published schema that check-jsonschema brings for each."""


@pytest.mark.parametrize("pattern", FILES)
def test_files_fit_their_schemas(pattern: str) -> None:
    files = list(ROOT.glob(pattern))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", FILES[pattern], *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_there_is_one_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == bustseg.__version__
    assert f"version = {{{bustseg.__version__}}}" in (ROOT / "docs" / "cite.md").read_text()
    assert f"## {bustseg.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_workflows_and_hooks_run_what_the_makefile_has() -> None:
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ": " in line}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for line in path.read_text().splitlines():
            if "run: make " in line:
                assert line.rpartition(" ")[2] in targets, line


def test_the_workflow_of_the_site_installs_what_builds_it() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    workflow = (ROOT / ".github" / "workflows" / "docs.yml").read_text()
    (installs,) = (line for line in workflow.splitlines() if "pip install" in line)
    assert sorted(shlex.split(installs.partition("install ")[2])) == sorted(packages)
