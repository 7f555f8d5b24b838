# Every target sets itself up: a venv in .venv with the package and its development tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# test files go to this many processes; a file stays in one, since its tests share trained networks
WORKERS ?= 2

.PHONY: help setup quickstart test test-slow coverage faults lint format docs ui clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create the virtual environment

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo 'installing bustseg and its libraries into $(VENV): 7.6 GB on Linux, in minutes, once'
	$(BIN)/python -m pip install -e '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP) ## train and test a small network on phantoms, no data needed
	$(BIN)/bustseg fit --config configs/quickstart.yaml
	$(BIN)/bustseg test --ckpt_path latest

test: $(STAMP) ## run the tests but for those that take long
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not slow'

test-slow: $(STAMP) ## run the tests that take long: kills, several processes, every network
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

coverage: $(STAMP) ## run all tests and show the lines that none of them runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term --cov-report=html

faults: $(STAMP) ## kill processes, fill disks, break servers (hours), and write what held into the docs
	$(BIN)/python -m tests.faults

lint: $(STAMP) ## check style, types and the order of the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation's site into site/ and serve it
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

ui: $(STAMP) ## open the MLflow UI
	$(BIN)/bustseg ui

clean: ## remove caches, never runs or data
	rm -rf htmlcov .coverage .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
