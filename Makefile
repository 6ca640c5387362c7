# make demo: environment, plan, training, fits, report.   make test: environment and test suite.   make help: all targets.
#
# Variables: PYTHON (>= 3.11), VENV (folder of the environment), TORCH (what to give pip for torch), DIR (the study's folder),
# DEMO_ARGS (overrides for plan-sweep), SUBMIT_ARGS (overrides for submit-sweep), PYTEST_ARGS, SOAK_ARGS.

# The first of these that is 3.11 or newer; with none, python3, whose age the set-up then reports.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
VENV ?= .venv
TORCH ?=
DIR ?= studies/demo
DEMO_ARGS ?=
SUBMIT_ARGS ?=
PYTEST_ARGS ?=
SOAK_ARGS ?=
PORT ?= 5000
# What makes the demo small enough for a test of the loop: it shows that the loop runs, and nothing about scaling.
DEMO_SMALL_ARGS ?= budgets=[5e9,1e10] sizes=[w32,w48] arm_sizes={lst_curriculum:[w32]} stories_from=1e10 \
	evaluation.heldout_documents=8 evaluation.story_items=4 admission.max_match_gap=0.02

BIN := $(VENV)/bin
STAMP := $(VENV)/.lst-scaling
PACKAGES := lst sweeps launch analysis reports
CODE := $(PACKAGES) tests tools
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS := $(shell test $(CORES) -gt 4 && echo 4 || echo $(CORES))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo demo-small test soak lint format types mlflow harness lock clean choose-torch

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP)  ## the environment alone

$(STAMP): pyproject.toml constraints.txt requirements.lock tools/environment.py
	@$(PYTHON) tools/environment.py $(VENV) --torch "$(TORCH)"

# Another TORCH than the environment was made with makes it anew.
ifneq ($(TORCH),)
ifneq ($(TORCH),$(shell sed -n 's/^chosen: //p' $(STAMP) 2>/dev/null))
$(STAMP): choose-torch
endif
endif

demo: $(STAMP)  ## plan, train, fit and report the demo study in DIR (studies/demo); go on after Ctrl-C by typing it again
	@echo "[demo] 1/4 plan";   $(BIN)/plan-sweep study=demo out=$(DIR) $(DEMO_ARGS)
	@echo "[demo] 2/4 train";  $(BIN)/submit-sweep submit $(DIR) cluster=local $(SUBMIT_ARGS)
	@echo "[demo] 3/4 fit";    $(BIN)/fit-scaling collect $(DIR) && $(BIN)/fit-scaling fit $(DIR)
	@echo "[demo] 4/4 report"; $(BIN)/scaling-report $(DIR)
	@echo "[demo] done. Open this page in a browser: $(abspath $(DIR))/report/index.html"

demo-small: $(STAMP)  ## the same loop at a reduced size, in studies/demo-small
	@$(MAKE) --no-print-directory demo DIR=studies/demo-small DEMO_ARGS="$(DEMO_SMALL_ARGS)"

test: $(STAMP)  ## the test suite
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak: export SLURM_LAB_ARRAY = 11
soak: $(STAMP)  ## on a real SLURM of this machine (as root): the scenarios in full, then 60 runs under random faults for 10 minutes
	@trap 'tests/slurm/slurm-cluster down' EXIT; tests/slurm/slurm-cluster up && eval "$$(tests/slurm/slurm-cluster env)" && { \
		LST_SOAK=1 LST_REQUIRE=slurm $(BIN)/python -m pytest tests/slurm $(PYTEST_ARGS); scenarios=$$?; \
		tests/slurm/slurm-cluster up; $(BIN)/python -m tests.slurm.soak $(SOAK_ARGS); soak=$$?; \
		echo "[soak] exit codes: scenarios $$scenarios, soak $$soak"; test $$scenarios = 0 -a $$soak = 0; }

lint: $(STAMP)  ## ruff's rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP)  ## ruff's fixes and format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict on the five packages
	@$(BIN)/mypy

mlflow: $(STAMP)  ## DIR's curves in MLflow's pages on this machine (installs MLflow's server once)
	@$(BIN)/python -c "import flask" 2>/dev/null || $(BIN)/python -m pip install --editable '.[ui]' --constraint constraints.txt
	@$(BIN)/fit-scaling sync $(DIR)
	@$(BIN)/mlflow ui --backend-store-uri "sqlite:///$(abspath $(DIR))/mlflow.db" --host 127.0.0.1 --port $(PORT)

harness: $(STAMP)  ## install EleutherAI's lm-evaluation-harness, which checks scores from outside (docs/evaluation.md)
	@$(BIN)/python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('lm_eval'))" || \
		$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable '.[harness]' --constraint constraints.txt || \
		$(BIN)/python -m pip install --quiet --editable '.[harness]' --constraint constraints.txt

lock: $(STAMP)  ## write constraints.txt and requirements.lock anew from pyproject.toml
	@$(BIN)/python tools/lock.py

clean:  ## remove the environment, builds and caches; studies/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './studies/*' -prune -exec rm -rf {} +
