"""The container files keep their promises. No engine is needed: linters and a look at the files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

DOCKER = REPOSITORY / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
CUDA: dict[str, Any] = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ONE_SHOT = {"minio-bucket"}
VARIABLE = re.compile(r"\$\{(\w+)(:?[-?+][^}]*)?\}")


def linter(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install 'bustseg[dev]')")
    return found


def run(*command: object) -> None:
    done = subprocess.run([str(item) for item in command], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_the_linter(path: Path) -> None:
    run(linter("hadolint"), path)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_fit_the_schema(name: str) -> None:
    run(linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DOCKER / name)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_and_run_as_a_user(path: Path) -> None:
    text = path.read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))
    for image in re.findall(r"^FROM (\S+)", text, re.M):
        image = VARIABLE.sub(lambda match: arguments[match[1]], image)
        assert image in stages or re.search(r":[\w.-]*\d[\w.-]*$", image), f"{image} has no version"
        assert "latest" not in image
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == "10001:10001"
    assert "LABEL org.opencontainers.image.title" in text
    assert "pip install" not in text or "PIP_NO_CACHE_DIR=1" in text
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for name in source.split():
            assert (REPOSITORY / name).exists(), name


def arguments_of(text: str) -> dict[str, str]:
    """Build arguments of a Dockerfile and their defaults."""
    return dict(re.findall(r"^ARG (\w+)=(\S*)$", text, re.M))


def test_the_extras_of_the_image_are_extras_of_the_package() -> None:
    given = arguments_of((DOCKER / "Dockerfile").read_text())["EXTRAS"].split(",")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(given) <= set(project["optional-dependencies"])
    assert {"server", "serve"} <= set(given), "a worker needs PostgreSQL's driver, and `bustseg serve` its own packages"
    assert COMPOSE["x-bustseg"]["build"]["args"]["EXTRAS"] == f"${{EXTRAS:-{','.join(given)}}}"


def test_the_wheel_of_the_image_finds_all_that_it_takes_in() -> None:
    """hatchling leaves out a folder that is not there and says nothing: `bustseg configs` was empty in the image."""
    text = (DOCKER / "Dockerfile").read_text()
    stage = text.split("\nFROM ")[1]
    before = stage[: stage.index("--force-reinstall")]
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", before, re.M) for name in line.split()}
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) <= copied


def test_every_build_argument_of_the_compose_files_is_one_of_the_dockerfile() -> None:
    for service in [*SERVICES.values(), *CUDA["services"].values()]:
        build = service.get("build", {})
        if arguments := build.get("args"):
            path = DOCKER.parent / build.get("dockerfile", "docker/Dockerfile")
            assert set(arguments) <= set(arguments_of(path.read_text())), path.name


def test_what_a_build_needs_of_its_surroundings_stays_out_of_the_image() -> None:
    """An index's address may hold a password: as an argument of the first stage it is in no layer of the last."""
    for name in ("Dockerfile", "Dockerfile.mlflow"):
        first, *others = (DOCKER / name).read_text().split("\nFROM ")[1:]
        for argument in ("PIP_INDEX_URL", "PIP_CERT"):
            assert f"ARG {argument}=\n" in first
            assert not any(argument in other for other in others)


def test_the_script_that_tries_it_all_names_no_other_host_and_no_folder_of_a_machine() -> None:
    script = DOCKER / "try.sh"
    run("bash", "-n", script)
    text = script.read_text()
    assert set(re.findall(r"https?://([^/:$\s\"]+)", text)) <= {"127.0.0.1"}
    folders = set(re.findall(r"(?<![\w./$}*\"<-])/(\w+)", text))
    assert folders <= {"bin", "configs", "data", "dev", "docker", "opt", "run", "tmp", "usr", "var"}
    for step in re.search(r"steps=\(base ([^)]*)\)", text)[1].split():
        assert re.search(rf"^{step}\(\) ", text, re.M), step


def test_the_build_context_holds_no_data_and_no_secrets() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "nothing goes in that is not named"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == {
        *("bustseg", "configs", "pyproject.toml", "README.md", "LICENSE")
    }
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert "/docker/.env" in ignored


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].split(":")[0] not in ("root", "0")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "privileged" not in service
    assert re.search(r":[\w.-]+$", service["image"])
    assert not service["image"].endswith(":latest")
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    for other, needs in service.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert needs["condition"] == wanted


def test_no_password_stands_in_a_file() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY", key):
                variable = VARIABLE.fullmatch(str(value))
                assert variable, f"{name}: {key}"
                assert variable[2] in (":-", ":?set it in docker/.env"), f"{name}: {key} has a default"
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"] == "${POSTGRES_PASSWORD:?set it in docker/.env}"
    text = (DOCKER / "compose.yaml").read_text()
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text), "a password in a URL shows in process lists"
    for line in (DOCKER / ".env.example").read_text().splitlines():
        if "PASSWORD" in line or "MINIO_ROOT_USER" in line:
            assert line.endswith("="), line


def test_every_variable_of_the_compose_files_is_explained_and_the_other_way_round() -> None:
    used = {
        match[1]
        for name in ("compose.yaml", "compose.cuda.yaml")
        for match in VARIABLE.finditer((DOCKER / name).read_text())
    }
    explained = set(re.findall(r"^#?([A-Z_]+)=", (DOCKER / ".env.example").read_text(), re.M))
    assert used == explained


def test_volumes_data_and_entry_points() -> None:
    named = {
        volume["source"]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume["type"] == "volume"
    }
    assert named == set(COMPOSE["volumes"])
    for name in ("trainer", "worker"):
        service = SERVICES[name]
        data = next(volume for volume in service["volumes"] if volume["target"] == "/data")
        assert data["read_only"] is True
        assert service["shm_size"]
        assert service["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        published = SERVICES["mlflow"]["ports"][0].removeprefix("127.0.0.1:").removesuffix(":5000")
        assert service["environment"]["BUSTSEG_UI"] == f"http://localhost:{published}"
        assert service["profiles"], "starts only when asked for"
        (devices,) = CUDA["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices["capabilities"] == ["gpu"]
        assert CUDA["services"][name]["build"]["args"]["VARIANT"] == "cuda"
    # the address that the trainers call is one that the server answers to
    allowed = next(item for item in SERVICES["mlflow"]["command"] if item.startswith("--allowed-hosts="))
    assert "mlflow:5000" in allowed
    assert "*," not in allowed.replace("localhost:*,", "").replace("127.0.0.1:*,", "")
