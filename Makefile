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

.PHONY: venv demo test test-slow benchmark plan docs lint format clean

venv: .venv/.ready-$(ACCEL)

.venv/.ready-$(ACCEL): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; say PYTHON=python3.12, or where yours is"; exit 2; }
	$(PYTHON) -m venv $(if $(filter-out $(ACCEL),$(MADE_FOR)),--clear) .venv
	$(BIN)/pip install -q --disable-pip-version-check -e "$(PROJECT_$(ACCEL))"
	@touch $@

.venv/.ready-test: requirements-test.txt .venv/.ready-$(ACCEL)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	@touch $@

# The main job: scenes, SFT, GRPO, evaluation, a table and a page of pictures in runs/demo.
# QUICK=1 takes about three minutes and shows only that everything moves, in runs/demo_quick.
# MODEL=qwen2_5_vl does it with the small Qwen2.5-VL, in runs/demo_qwen2_5_vl.
OTHER_MODEL = $(addprefix _,$(filter-out qwen2_vl,$(MODEL)))
demo: venv
	$(BIN)/python scripts/demo.py --base=assets/small_base$(OTHER_MODEL) \
	  --workdir=runs/demo$(OTHER_MODEL)$(if $(QUICK),_quick) $(if $(QUICK),--quick) $(DEMO_FLAGS)

# Most of its time would go into compiling well what is then computed once.
test: export XLA_FLAGS := $(XLA_FLAGS) --xla_backend_optimization_level=0
test: .venv/.ready-test lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 -m slow

# Our way beside others', in one run: make benchmark CASE=sft_step
# The allocator keeps memory between steps, for all ways alike: some machines take back what a step
# has freed, and then the time of a step is mostly the time of getting it again.
benchmark: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184
benchmark: .venv/.ready-test
	$(BIN)/python scripts/benchmark.py --case=$(CASE)

# Will it fit? make plan CONFIG=configs/grpo_qwen2_vl_7b.py MACHINE=h100:8
# In an environment of its own, since it brings compilers for machines that aren't there (2.5 GB).
plan: .venv-plan/.ready
	.venv-plan/bin/python scripts/plan.py --config=$(CONFIG) --machine=$(MACHINE) $(PLAN_FLAGS)

.venv-plan/.ready: requirements-plan.txt requirements.txt
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/pip install -q --disable-pip-version-check -r requirements-plan.txt -e .
	@touch $@

# The site of docs/ and of the docstrings, in runs/site; a link that leads nowhere is an error. In an
# environment of its own, since it imports nothing of the project. While writing:
# .venv-docs/bin/mkdocs serve. (The variable: no word from the theme about MkDocs 2.)
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/.ready: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# What can be said of the code without running it, a line a checker. `make format` corrects what it can.
lint: .venv/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --output-format=min-text --summary=none

format: .venv/.ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-plan .venv-docs runs tests/.jax_cache
