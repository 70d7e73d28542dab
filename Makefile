# make demo: the whole loop on the built-in skills. make test: the tests. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test slow lint types audit clean

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
	$(BIN)/python -m pytest -n auto --dist worksteal

slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# pip-audit has an environment of its own: what it needs is no dependency of ours.
audit: setup
	$(PYTHON) -m venv .venv/audit
	-.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(PYTHON) scripts/audit.py .venv/audit/bin/pip-audit $(BIN)/python

docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
