# Each target creates .venv first and runs in it. Requirements: python3 (3.11 or newer) with venv, make.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$each" && break; done)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

ULTRALYTICS := .venv-ultralytics
OLDEST := .venv-oldest
MLFLOW := .venv-mlflow-2 .venv-mlflow-3
BENCH := .venv-bench
FRAMEWORKS_VENV := .venv-frameworks
# The CPU build of torch; of torchvision only the Python code is used, so any build works.
TORCH ?= torch==2.13.0+cpu torchvision==0.28.0

# Where a machine forbids compiled files, each process of the tests would compile the package and the tests again.
export PYTHONDONTWRITEBYTECODE :=

# The tests mostly wait for processes, sockets and disks, so more of them run at a time than there are processors.
WORKERS ?= 6
PYTEST := $(BIN)/python -m pytest
# The fast tests sync thousands of small files: in memory that takes a fifth less time. The slow ones use the disk.
IN_MEMORY := $(shell test -w /dev/shm && test "$$(df -Pk /dev/shm | awk 'END {print $$4}')" -gt 4000000 && echo yes)
IN_SCRATCH := $(if $(IN_MEMORY),export TMPDIR=$$(mktemp -d /dev/shm/hubqueue-tests-XXXXXX); trap 'rm -rf "$$TMPDIR"' EXIT INT TERM;)

.PHONY: help demo test test-slow test-destinations test-oldest soak test-ultralytics test-frameworks torture bench lint format reference wheel clean
.DEFAULT_GOAL := help

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 of version 3.11 or newer with venv was found; set PYTHON=/path/to/python3" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[dev]' 2>$(VENV)/install.log || { cat $(VENV)/install.log >&2; exit 1; }
	@# The packages whose callbacks HUBTrainingSession has to support; their wheels are read, not installed.
	@for each in 8.2.70 8.3.253; do \
		$(PIP) download --no-deps --only-binary :all: --dest $(VENV)/wheels "ultralytics==$$each" || exit 1; done
	@touch $@

demo: $(STAMP) ## Show everything on this machine: a run, an outage, a kill -9, everything delivered.
	@$(BIN)/hubqueue demo

test: $(STAMP) ## Run the tests in random order, in parallel (WORKERS=6, PYTEST_OPTIONS=--randomly-seed=N).
	@$(IN_SCRATCH) $(PYTEST) -m "not slow" -n $(WORKERS) --dist worksteal $(PYTEST_OPTIONS)

test-slow: $(STAMP) ## Run the slow tests: small scales of the torture.
	@$(PYTEST) -m slow -n 2 --dist worksteal --ignore tests/destinations $(PYTEST_OPTIONS)

# Real MLflow servers, with the versions of tests/mlflow-N.txt (Python 3.11 to 3.13). They import few of their modules, so
# compiling all of them would only cost time.
$(MLFLOW:=/.installed): .venv-mlflow-%/.installed: tests/mlflow-%.txt
	@echo "installing into $(@D) (about 700 MB)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check --no-input install --no-compile \
		-c $< 'mlflow[auth]' 2>$(@D)/install.log || { cat $(@D)/install.log >&2; exit 1; }
	@touch $@

test-destinations: $(STAMP) $(MLFLOW:=/.installed) ## Run the tests against real servers of other projects, which run on this machine.
	@$(PYTEST) tests/destinations -n 2 --dist loadfile $(PYTEST_OPTIONS)

soak: $(STAMP) ## Run the tests 20 times with two busy loops in parallel (SOAK="--runs 5 --busy 4").
	@$(BIN)/python tests/soak.py $(SOAK)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt constraints.txt
	@echo "installing into $(OLDEST)"
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@# The test tools have the versions of constraints.txt; hubqueue's dependencies have their least versions.
	@sed -n 's/^\([A-Za-z0-9_-]*\)==.*/^\1==/p' constraints-oldest.txt | grep -vif - constraints.txt >$(OLDEST)/tools.txt
	@$(OLDEST)/bin/python -m pip --quiet --disable-pip-version-check --no-input install \
		-c constraints-oldest.txt -c $(OLDEST)/tools.txt -e '.[dev]' 2>$(OLDEST)/install.log || { cat $(OLDEST)/install.log >&2; exit 1; }
	@touch $@

test-oldest: $(OLDEST)/.installed ## Run the tests that need no training with the least versions that hubqueue supports.
	@$(OLDEST)/bin/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal tests/unit tests/contract tests/promises tests/field tests/doors

$(ULTRALYTICS)/.installed: pyproject.toml constraints.txt tests/trainings/requirements.txt
	@echo "installing into $(ULTRALYTICS) (about 2 GB)"
	@test -x $(ULTRALYTICS)/bin/python || $(PYTHON) -m venv $(ULTRALYTICS)
	@for each in "-c constraints.txt -e .[s3]" "-r tests/trainings/requirements.txt" "$(firstword $(TORCH))" "--no-deps $(TORCH)" \
		"--no-deps --target $(ULTRALYTICS)/versions/8.2.70 ultralytics==8.2.70" \
		"--no-deps --target $(ULTRALYTICS)/versions/8.3.253 ultralytics==8.3.253" \
		"--no-deps --target $(ULTRALYTICS)/versions/8.4.190 ultralytics==8.4.190"; do \
		$(ULTRALYTICS)/bin/python -m pip --quiet --disable-pip-version-check --no-input install $$each \
			2>$(ULTRALYTICS)/install.log || { cat $(ULTRALYTICS)/install.log >&2; exit 1; }; done
	@touch $@

test-ultralytics: $(STAMP) $(ULTRALYTICS)/.installed ## Train with three versions of ultralytics, hub outages, and kill -9.
	@PYTHONPATH=tests $(BIN)/python -m trainings

$(FRAMEWORKS_VENV)/.installed: pyproject.toml constraints.txt tests/frameworks/requirements.txt
	@echo "installing into $(FRAMEWORKS_VENV) (about 2 GB)"
	@test -x $(FRAMEWORKS_VENV)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS_VENV)
	@# The CPU build of torch comes first: a framework would install another one.
	@for each in "-c constraints.txt -e .[s3]" "$(firstword $(TORCH))" "-c constraints.txt -r tests/frameworks/requirements.txt"; do \
		$(FRAMEWORKS_VENV)/bin/python -m pip --quiet --disable-pip-version-check --no-input install $$each \
			2>$(FRAMEWORKS_VENV)/install.log || { cat $(FRAMEWORKS_VENV)/install.log >&2; exit 1; }; done
	@touch $@

test-frameworks: $(STAMP) $(FRAMEWORKS_VENV)/.installed ## Train with each framework, outages, kill -9 and resume (FRAMEWORKS="keras lightning").
	@$(FRAMEWORKS_VENV)/bin/python -m pytest tests/frameworks $(PYTEST_OPTIONS)
	@PYTHONPATH=tests $(BIN)/python -m frameworks $(FRAMEWORKS)

torture: $(STAMP) ## Kills, power cuts, bad peers and bad disks (TORTURE=full: the published figures).
	@PYTHONPATH=tests $(BIN)/python -m torture

$(BENCH)/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@echo "installing into $(BENCH) (about 700 MB)"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@for each in "-c constraints.txt -e .[s3]" "-r benchmarks/requirements.txt"; do \
		$(BENCH)/bin/python -m pip --quiet --disable-pip-version-check --no-input install $$each \
			2>$(BENCH)/install.log || { cat $(BENCH)/install.log >&2; exit 1; }; done
	@touch $@

bench: $(BENCH)/.installed ## Measure hubqueue, the floor and the peers (ROWS="enqueue drain", BENCH_OPTIONS=--quick; --write for the docs).
	@PYTHONPATH=tests $(BENCH)/bin/python -m benchmarks $(ROWS) $(BENCH_OPTIONS)

lint: $(STAMP) ## Check style, types and floors.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Format the code.
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

reference: $(STAMP) ## Write config.example.toml and the tables of docs/configuration.md from the declarations of the settings.
	@PYTHONPATH=tests $(BIN)/python -m reference

wheel: $(STAMP) ## Build the wheel into dist/.
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## Remove the environments and everything that was built.
	@rm -rf $(VENV) $(OLDEST) $(ULTRALYTICS) $(MLFLOW) $(BENCH) $(FRAMEWORKS_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
