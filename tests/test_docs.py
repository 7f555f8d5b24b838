"""The documentation as its readers meet it: the site builds, links lead somewhere, nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bustseg.cli import VERBS
from bustseg.command_line import _check_spelling, make_parser, rest_of
from bustseg.errors import UserError
from bustseg.experiment import Experiment

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


def test_every_picture_is_shown_somewhere() -> None:
    shown = {Path(name).name for page in PAGES for name in re.findall(r"\]\(([^)\s]+)", page.read_text())}
    assert {path.name for path in (ROOT / "docs" / "img").iterdir()} <= shown


COMMAND = re.compile(r"(?:\w+=\S+ )*(?:srun(?: --\S+)* |torchrun .* -m )?(?:\$\(BIN\)/)?bustseg(?:\.cli)? (.+)")
OTHER_CONFIGS = ("theirs.yaml", "corrected.yaml", "mine.yaml", "loggers.yaml", "lite2.yaml", "mlruns/")
"""Files that a page tells its reader to write, or that a command has written before."""


def documented(page: Path) -> list[list[str]]:
    """The arguments of every bustseg command in a page's blocks of shell code."""
    found = []
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```$", page.read_text(), re.M | re.S):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            command = COMMAND.match(line.strip())
            if command and "`" not in line:
                words = shlex.split(command.group(1), comments=True)
                end = next((k for k, word in enumerate(words) if word in ("|", "&", "&&", "||", ">")), len(words))
                found.append(words[:end])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_spelt_as_they_are(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the pages is parsed, a fit's options by the parser of experiments; none is run."""
    monkeypatch.chdir(ROOT)
    for words in documented(page):
        if "..." in words:  # shortened, to show one option
            continue
        verb = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
        assert verb in VERBS, words
        parts = verb.split()
        function = getattr(import_module(f"bustseg.commands.{'.'.join(parts)}"), parts[-1])
        own = [word for place, word in enumerate(words) if word != "--trust" and words[place - 1] != "--trust"]
        parser, rest = make_parser(function, verb), rest_of(function)
        try:
            _check_spelling(parser, own[len(parts) :], only_these=rest is None)
            if rest is None:
                parser.parse_args(own[len(parts) :])
                continue
            _, options = parser.parse_known_args(own[len(parts) :])
            if verb == "fit" and "--config" in own and not any(name in " ".join(own) for name in OTHER_CONFIGS):
                Experiment.parse(options)
        except UserError as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error


def test_the_commands_of_the_first_page_are_found() -> None:
    verbs = [words[0] for words in documented(ROOT / "README.md")]
    assert verbs == ["predict", "data", "fit", "test", "reproduce", "sweep"]


def test_every_config_that_ships_is_described() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    described = re.findall(r"`(configs/[^`]*)`", page)
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        assert name in described or f"{path.parent.relative_to(ROOT).as_posix()}/" in described or "model_" in name, (
            name
        )
