# From a fresh clone: `make run` measures and writes a report, `make test` runs every test. Python 3.11+ is all they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# pytest-xdist runs the tests in this many processes, each file in one of them; with 0, all in one process. The order of
# files is tests/conftest.py's. A process that crashes ends the run: xdist would start that test again and again.
WORKERS ?= 2
PYTEST  := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Python compiles the modules that are imported, a quarter of those installed: pip would spend half of its time on all.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile

# Tests start hundreds of processes: where no bytecode may be written, each would compile our packages again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := run
.PHONY: help run quick test test-gpu check docs artifact figures hooks slurm-up slurm-down clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(VENV)/.installed ## install into .venv, measure five methods on this machine, write a report
	$(BIN)/blockshock -m +sweep=first_picture

quick: check ## check, and the tests that answer within two minutes on two cores
	$(PYTEST) -m "not slow"

test: check ## check, and every test
	$(PYTEST)

test-gpu: $(VENV)/.installed ## the tests that need one CUDA GPU or two
	$(BIN)/pytest -m "gpu or gpus"

check: $(VENV)/.installed ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed ## the pages and an API reference as a site: build/site/docs/index.html; broken links fail
	$(BIN)/python docs/make_reference.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs . build/site

artifact: $(VENV)/.installed ## check the numbers of README and docs: from the records, and measured again where possible
	$(BIN)/blockshock-artifact

# The figures that pages show, from the committed records. Those of single runs (CONTRIBUTING.md#figures-of-the-pages)
# were drawn by the run.
FIGURES = $(BIN)/blockshock-report outputs/reference/$(1) --out docs/figures/$(1) --figures
figures: $(VENV)/.installed ## draw docs/figures again from the committed records
	$(call FIGURES,hypotheses_h200) hypotheses,throughput,training_step
	$(call FIGURES,bench_h200) bench_forward_over_row,bench_product,bench_all_reduce,bench_train_over_row,bench_host,bench_law
	$(call FIGURES,checkpoint_h200) pareto,recomputation_memory,recomputation_time
	$(call FIGURES,compiled_front_h200) compiled_front
	$(call FIGURES,compiled_fronts_h200) compiled_front
	$(call FIGURES,phase_diagram_h200) phase_diagram
	$(call FIGURES,profile_h200) batch_peak_memory_resnet152,batch_step_time_resnet152
	$(call FIGURES,block_shock_h200) speedup_over_row,training_step,drift

hooks: $(VENV)/.installed ## run `make check` before every git commit
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pre-commit
	$(BIN)/pre-commit install

slurm-up: ## a SLURM of two nodes on this machine, to try hydra/launcher=slurm (as root)
	tests/slurm.sh install
	tests/slurm.sh up

slurm-down: ## stop it
	tests/slurm.sh down

clean: ## delete .venv and what tools have left; measurements stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt --editable ".[models,test]"
	touch $@
