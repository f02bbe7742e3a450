# `make demo` and `make test` do all the set-up they need on a fresh machine with Python >= 3.11.
PYTHON ?= python3
# What .venv was made for; `make venv ACCEL=…` for something else makes it anew.
MADE_FOR := $(firstword $(patsubst .venv/.ready-%,%,$(filter-out %-test,$(wildcard .venv/.ready-*))))
ACCEL ?= $(or $(MADE_FOR),cpu)
BIN = .venv/bin
# Large blocks of memory in huge pages (glibc): a fifth less time a step on a CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# Virtual CPU devices may wait long for each other on a busy machine; by default XLA then gives up.
export XLA_FLAGS ?= --xla_cpu_collective_call_terminate_timeout_seconds=1200
# What XLA has compiled once is not compiled again.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/runs/.jax_cache

# The project with jax for this machine; pyproject.toml has the names in brackets.
PROJECT_cpu = .
PROJECT_cuda12 = .[cuda12]
PROJECT_cuda13 = .[cuda13]
PROJECT_tpu = .[tpu]
ifndef PROJECT_$(ACCEL)
$(error ACCEL must be cpu, cuda12, cuda13 or tpu, not '$(ACCEL)')
endif

.PHONY: help venv demo test test-slow benchmark plan docs lint format clean

help:  # this list
	@sed -n 's/^\([a-z-]*\):[^#]*# */\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

venv: .venv/.ready-$(ACCEL)  # installs into .venv; ACCEL=cuda12, cuda13 or tpu for an accelerator

.venv/.ready-$(ACCEL): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; say PYTHON=python3.12, or where yours is"; exit 2; }
	@echo "Installing into .venv (once; some minutes, without output)"
	$(PYTHON) -m venv $(if $(filter-out $(ACCEL),$(MADE_FOR)),--clear) .venv
	$(BIN)/pip install -q --disable-pip-version-check -e "$(PROJECT_$(ACCEL))"
	@touch $@

.venv/.ready-test: requirements-test.txt .venv/.ready-$(ACCEL)
	@echo "Installing what the tests need, with PyTorch (once; some minutes, without output)"
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	@touch $@

# The main job: scenes, SFT, GRPO, evaluation, a table and a page of pictures in runs/demo.
# QUICK=1 takes about three minutes and shows only that everything moves, in runs/demo_quick.
# MODEL=qwen2_5_vl or qwen3_vl does it with the small one of that family, in runs/demo_MODEL.
OTHER_MODEL = $(addprefix _,$(filter-out qwen2_vl,$(MODEL)))
demo: venv  # the main job: data, SFT, GRPO, evaluation, in runs/demo; QUICK=1, MODEL=qwen2_5_vl, qwen3_vl
	$(BIN)/python scripts/demo.py --base=assets/small_base$(OTHER_MODEL) \
	  --workdir=runs/demo$(OTHER_MODEL)$(if $(QUICK),_quick) $(if $(QUICK),--quick) $(DEMO_FLAGS)

# Most of its time would go into compiling well what is then computed once. (XLA's older emitters of
# loops compile in a sixth of the time of its newer ones.) With worksteal each process has the tests of
# whole files, whose fixtures it makes once, until one has no more.
QUICK_TO_COMPILE = --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 \
  --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters
test: export XLA_FLAGS := $(XLA_FLAGS) $(QUICK_TO_COMPILE)
test: .venv/.ready-test lint  # lint, types and the quick tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/.ready-test  # tests marked slow: hours
	$(BIN)/python -m pytest -n 2 -m slow

# Our way beside others', in one run: make benchmark CASE=sft_step
# The allocator keeps memory between steps, for all ways alike: some machines take back what a step
# has freed, and then the time of a step is mostly the time of getting it again.
benchmark: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184
benchmark: .venv/.ready-test  # measures a case beside other ways: CASE=sft_step
	$(BIN)/python scripts/benchmark.py --case=$(CASE)

# Will it fit? make plan CONFIG=configs/grpo_qwen2_vl_7b.py MACHINE=h100:8
# In an environment of its own, since it brings compilers for machines that aren't there (2.5 GB).
plan: .venv-plan/.ready  # compiles a recipe for a machine that isn't there: CONFIG=... MACHINE=h100:8
	.venv-plan/bin/python scripts/plan.py --config=$(CONFIG) --machine=$(MACHINE) $(PLAN_FLAGS)

.venv-plan/.ready: requirements-plan.txt requirements.txt
	@echo "Installing into .venv-plan (once; 2.5 GB; some minutes, without output)"
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/pip install -q --disable-pip-version-check -r requirements-plan.txt -e .
	@touch $@

# The site of docs/ and of the docstrings, in runs/site; a link that leads nowhere is an error. In an
# environment of its own, since it imports nothing of the project. While writing:
# .venv-docs/bin/mkdocs serve. (The variable: no word from the theme about MkDocs 2.)
docs: .venv-docs/.ready  # the site of docs/ and of the docstrings, in runs/site
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/.ready: requirements-docs.txt
	@echo "Installing into .venv-docs (once; some minutes, without output)"
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# What can be said of the code without running it, a line a checker. `make format` corrects what it can.
lint: .venv/.ready-test  # checks of style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --output-format=min-text --summary=none

format: .venv/.ready-test  # corrects what it can of style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  # removes the environments and runs/, trained models too
	rm -rf .venv .venv-plan .venv-docs runs tests/.jax_cache
