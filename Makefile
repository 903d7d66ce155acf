# `make demo` and `make test` do all of the set-up themselves. `make` alone lists the targets.

PYTHON ?= python3
VENV   ?= .venv
# What is installed where there is no torch yet. It is taken from PyTorch's own CPU index where that can be
# reached: on Linux the build on PyPI brings gigabytes of CUDA with it. For a CUDA build: make demo TORCH=torch TORCH_INDEX=
TORCH       ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# `PIPFLAGS=` shows all that pip says; `PYTESTFLAGS="-k rope -x"` runs a part of the suite.
PIPFLAGS    ?= -qq
PYTESTFLAGS ?=
WORKERS     ?= auto
# `GPUFLAGS="--wheels wheels --out results"`: `python -m benchmarks.gpu --help` lists all.
GPUFLAGS    ?=
# Pages whose numbers are measured, which takes minutes.
MEASURED    := $(addprefix docs/generate/,conformance.py doors.py families.py notebooks.py)

PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install $(PIPFLAGS)
PINS   := $(VENV)/pins.txt
# pip compiles the installed modules on one core, which takes longer than installing them. A file in another Python's syntax is no error.
COMPILE := $(PY) -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
# With bytecode on disk, the processes that tests start do not compile the package again, whatever the caller's environment says.
TEST   := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal
TORCH_OK := import torch, sys; v = torch.__version__.split("."); sys.exit((int(v[0]), int(v[1])) < (2, 9))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo quick quick-static quick-tests test test-all fuzz lint types format house docs pages site bench evidence gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.train ## train the small rotary decoder for about two minutes, then sample from it
	@$(PY) -m x_positional.cli.demo

quick: $(VENV)/.dev ## lint, types, and one scheme of each kernel kind through the contract: about 90 s on two cores
	@$(MAKE) --no-print-directory -j2 quick-static quick-tests

test: $(VENV)/.dev ## the whole test suite, a sample of its random draws: about a quarter of an hour on two cores
	@echo "Running the tests (about a quarter of an hour on two cores) ..."
	@$(TEST) $(PYTESTFLAGS)

test-all: $(VENV)/.dev ## the whole test suite with every random draw
	@echo "Running the tests with every draw (longer than make test) ..."
	@X_POSITIONAL_ALL_DRAWS=1 $(TEST) $(PYTESTFLAGS)

fuzz: $(VENV)/.dev ## thousands of junk configs, inputs and model files: every answer right, or refused by a clear error
	@echo "Feeding junk to everything that reads input (a few minutes on two cores) ..."
	@X_POSITIONAL_ALL_DRAWS=1 $(TEST) tests/fuzz $(PYTESTFLAGS)

lint: $(VENV)/.dev ## ruff, formatting and spelling of everything
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m codespell_lib

types: $(VENV)/.dev ## pyright on the package, the benchmarks and the tests' support
	@$(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.dev ## let ruff fix and format everything
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

house: $(VENV)/.dev ## measure the layout: modules, import chains, functions
	@$(PY) -m tests.house

docs: $(VENV)/.dev ## write the generated pages of docs/ again, except those of `make pages`, and build the site (a minute)
	@set -e; for page in $(filter-out $(MEASURED),$(wildcard docs/generate/[!_]*.py)); do \
		echo "$$page ..."; PYTHONPATH=. $(PY) $$page; done
	@$(MAKE) --no-print-directory site

pages: $(VENV)/.dev ## write the pages that are measured: conformance, doors, families, outputs of the notebooks (half an hour on two cores)
	@set -e; for page in $(MEASURED); do echo "$$page ..."; PYTHONPATH=. $(PY) $$page; done

site: $(VENV)/.dev ## build the documentation as a site into site/; any warning is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "Open site/index.html."

bench: $(VENV)/.dev ## measure speed and memory beside x-transformers and transformers; continues where it was interrupted
	@$(PY) -m x_positional.cli.main bench

evidence: $(VENV)/.dev ## measure every scheme at equal compute (about an hour on two cores); continues where it was interrupted
	@OMP_NUM_THREADS=1 $(PY) -m benchmarks.evidence
	@$(PY) -m benchmarks.evidence.cost
	@PYTHONPATH=. $(PY) docs/generate/evidence.py

gpu: ## check and time everything on a CUDA device, without a network (under eight minutes); GPUFLAGS="--wheels DIR"
	@$(PYTHON) -m benchmarks.gpu $(GPUFLAGS)

clean: ## remove the environment and what tools left behind; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two halves of `make quick`, side by side.

quick-static: $(VENV)/.dev
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check .
	@$(PY) -m pyright --pythonpath $(PY)

quick-tests: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m quick tests/house tests/testing $(PYTESTFLAGS)

# The steps of the set-up. Each leaves a stamp in the environment, so a second run does nothing.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "$(PYTHON) is missing or older than Python 3.10: name a newer one, as in make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) (about ten seconds) ..."
	@shared=; if $(PYTHON) -c '$(TORCH_OK)' 2>/dev/null; then shared=--system-site-packages; fi; \
		$(PYTHON) -m venv $$shared $(VENV) || \
		{ echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.torch: $(VENV)/.made
	@if ! $(PY) -c '$(TORCH_OK)' 2>/dev/null; then \
		echo "Installing $(TORCH) (about 200 MB for the CPU build: one to three minutes) ..."; \
		index=; if test -n "$(TORCH_INDEX)" && $(PY) -c 'from urllib.request import urlopen; urlopen("$(TORCH_INDEX)/torch/", timeout=10)' 2>/dev/null; \
		then index="--extra-index-url $(TORCH_INDEX)"; fi; \
		$(PIP) --no-compile $$index '$(TORCH)'; \
	fi
	@$(PY) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(PINS)
	@touch $@

# The pin keeps the torch that is there: what depends on torch must not bring another one.
$(VENV)/.train: $(VENV)/.torch pyproject.toml
	@echo "Installing x-positional and what training needs (about one minute) ..."
	@$(PIP) --no-compile -c $(PINS) -e '.[train]'
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "Installing x-positional and what the tests need (one to two minutes) ..."
	@$(PIP) --no-compile -c $(PINS) -e '.[dev]'
	@$(COMPILE)
	@touch $@
