# The two commands of the README are `make up` and `make test`; `make help` lists the rest.
# Each makes or mends its own virtual environment first (tools/environment.py).

PYTHON ?= python3
NAME ?= demo
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Many tests wait for processes: two at a time, each file in one worker, so that what a file has started is shared by its tests.
# A worker that dies ends the run: xdist waits for ever for the tests of one that died among the last.
TOGETHER := -n 2 --dist loadfile --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help up down test test-all lint types bench bench-streams chaos soak gpu-check clean python env-up env-dev

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

up: env-up ## set up, then an OpenAI endpoint on localhost from a real model
	@$(BIN)/deployctl up $(NAME) --model demo $(if $(PORT),--port $(PORT)) --yes
	@echo; echo "deployctl is $(BIN)/deployctl; to have it on your PATH: . $(BIN)/activate" >&2

down: env-up ## stop that endpoint and prove that nothing of it is left
	@$(BIN)/deployctl down $(NAME)

# Many tests start processes of their own, and the clouds' SDKs are compiled when they are imported: once, and kept.
test test-all chaos soak: export PYTHONDONTWRITEBYTECODE :=

test: env-dev ## set up, then the tests (without the slow ones)
	$(PYTEST) $(TOGETHER) -m "not slow and not gpu"

test-all: env-dev ## every test that needs no GPU
	$(PYTEST) $(TOGETHER) -m "not gpu"

lint: env-dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env-dev ## mypy, strict
	$(BIN)/mypy

bench: env-dev ## this endpoint and vLLM side by side (see docs/benchmarks/README.md)
	$(BIN)/python -m bench $(ARGS)

bench-streams: env-dev ## 256 streams at once against this API server and vLLM's, engines without a model
	$(BIN)/python -m bench.streams $(ARGS)

chaos: env-dev ## two minutes of requests, disconnects, bad input and kills; every request must end well
	$(BIN)/python -m tests.chaos --minutes 2 $(ARGS)

soak: env-dev ## the same with 20,000 requests; writes its report to docs/benchmarks
	$(BIN)/python -m tests.chaos --out docs/benchmarks $(ARGS)

gpu-check: ## what needs an NVIDIA GPU, tests and measurements, in under nine minutes; says so when there is none
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  $(if $(GPU_PYTHON),:,$(MAKE) --no-print-directory env-dev) && nvidia-smi -L && \
	  $(or $(GPU_PYTHON),$(BIN)/python) -m bench.gpu $(ARGS); \
	else echo "gpu-check: no NVIDIA GPU on this machine (nvidia-smi -L fails), so nothing was checked"; fi

clean: ## remove the virtual environment and tool caches (run `make down` first)
	rm -rf .venv .venv.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

env-up: python
	@$(PYTHON) tools/environment.py up

env-dev: python
	@$(PYTHON) tools/environment.py dev

python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not installed"; \
	  echo "  try: sudo apt-get update && sudo apt-get install -y python3 python3-venv"; exit 1; } >&2
