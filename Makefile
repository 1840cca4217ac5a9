# Two commands matter: `make demo` (the whole path, end to end) and `make test` (the whole suite).
PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
DATA   ?= data
# Tests in as many processes as there are cores, but few: some watch real clocks.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
BIN    := $(VENV)/bin

.PHONY: env up demo test check chaos fuzz apifuzz hostile catalogue docs clean

env: $(VENV)/.installed

# torch first and pinned exactly: a bare `torch` may resolve to a CUDA build of several GB.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

up: env        ## the whole service on loopback, in the foreground
	@PORT=$(PORT) DATA=$(DATA) exec $(BIN)/python -m cli.up

demo: env      ## train, export, upload, prune with CHITA, download, compare
	@VENV=$(VENV) $(BIN)/python -m demo.run

test: env      ## the whole suite
	$(BIN)/python $(PYTEST)

check: env     ## format, lint, types, import contracts, then the suite
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pruning_core.algorithms --check
	$(BIN)/python $(PYTEST)

chaos: env     ## 200 jobs while every part of the service is killed again and again; about ten minutes
	$(BIN)/python -m tests.chaos

fuzz: env      ## coverage-guided fuzzing of every parser, SECONDS for each (data/fuzz keeps corpus and findings)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	nice -n 19 $(BIN)/python -m fuzz $(or $(TARGET),all) --seconds $(or $(SECONDS),1200)

hostile: env   ## hostile files that take minutes or gigabytes to make, and proof that the payloads are live
	PRUNING_HEAVY=1 $(BIN)/python -m pytest -q tests/hostile

apifuzz: env   ## schemathesis over every call of the document, with other data each time, for SECONDS
	PRUNING_APIFUZZ_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -q -s tests/api/test_schema_fuzz.py

docs: env      ## the site of the documents, into build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/docs/.trees docs build/docs
	@echo build/docs/index.html

catalogue: env ## rewrite pruning_core/catalogue.json after an algorithm or its options changed
	$(BIN)/python -m pruning_core.algorithms --write

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
