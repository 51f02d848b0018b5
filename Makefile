# A fresh clone needs python3 (3.11 or newer) and make. Everything else is installed into .venv.
PYTHON ?= python3
SPEC ?= sweeps/presets/mnist-mlp.yaml
UPGRADE ?=
NAME ?=
SET ?=
PROCESSES ?= 2

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready
BENCHMARKS := $(sort $(filter-out benchmarks/_% benchmarks/soak.py benchmarks/away.py,$(wildcard benchmarks/*.py)))

# Neither Ray nor MLflow reports usage from anything started here.
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup sweep lint test docs studies study soak bench pins clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## install everything into .venv (PYTHON=python3.12 picks an interpreter)

# Two steps, because `pins` needs uv before the pins it is about to replace can be installed.
$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "stabmap needs Python 3.11 or newer, but '$(PYTHON)' gives: $$($(PYTHON) -V 2>&1)." \
	       "Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(READY): pyproject.toml requirements.txt | $(UV)
	$(UV) pip install --python $(BIN)/python --compile-bytecode -r requirements.txt
	$(UV) pip install --python $(BIN)/python --no-deps -e .
	@touch $@

sweep: $(READY)  ## run a sweep: the MNIST preset, or SPEC=your.yaml
	$(BIN)/stabmap run $(SPEC)

lint: $(READY)  ## style, formatting, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A file stays in one process: its tests share a Ray, a server or a sweep.
test: lint  ## lint, then all tests, in two processes (PROCESSES=1 runs one after the other)
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile

docs: $(READY)  ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or with its search: $(BIN)/python -m http.server -b 127.0.0.1 -d site"

studies: $(READY)  ## run all of the papers' studies and write their pages in docs/studies/
	$(BIN)/python -m studies

study: $(READY)  ## run one: NAME=one-layer-cnn, and SET="seeds=10 budget.points=200" to change it
	@test -n "$(NAME)" || { echo "name a study: make study NAME=one-layer-cnn" >&2; exit 2; }
	$(BIN)/python -m studies $(NAME) $(foreach change,$(SET),-o $(change))

soak: $(READY)  ## 20 kills of worker, driver, MLflow and PostgreSQL; MLflow away: 20 minutes
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/away.py --report

bench: $(READY)  ## run every benchmark, one after the other
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

pins: $(UV)  ## renew requirements.txt (UPGRADE=all, or UPGRADE="ray optuna", takes newer releases)
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header -q -o requirements.txt \
	  $(if $(filter all,$(UPGRADE)),--upgrade,$(addprefix --upgrade-package ,$(UPGRADE)))

clean:  ## remove caches and build output; keeps .venv and your runs
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
