# make demo: the whole loop on the built-in skills. make test: the tests. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test slow lint types clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt requirements-yardsticks.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "idealmix needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-yardsticks.txt
	touch $@

demo: setup
	$(BIN)/idealmix demo --output runs/demo

test: setup
	$(BIN)/python -m pytest -n auto

slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
