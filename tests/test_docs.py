"""The documentation as its readers meet it: the site builds, links lead somewhere, nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_has_the_public_names(site: Path) -> None:
    page = (site / "reference" / "api" / "index.html").read_text()
    assert 'id="bustseg.deploy.predictor.Predictor"' in page
    assert 'id="bustseg.api.fit"' in page
    assert 'id="bustseg.models.FusionUNet"' in (site / "reference" / "api" / "models.html").read_text()
    assert not re.search(r":(?:class|func|mod):", page)  # Sphinx's roles are for Sphinx


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|source|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')
    for page in site.rglob("*.html"):
        assert not (found := loads.search(page.read_text())), f"{page.name} loads {found.group(0)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_name_files_that_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"a link leads to {target}"
    for name in re.findall(r"(?<![\w/.])(?:configs|benchmarks|studies)/[\w/.-]+\.(?:yaml|py|sh|csv)\b", text):
        assert "NAME" in name or (ROOT / name).exists(), f"a command names {name}"
