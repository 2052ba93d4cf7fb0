# Two commands for a newcomer: `make demo` and `make test`. Each builds .venv first if it is missing or outdated.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MACHINE := $(shell uname -m)

# torch and torchvision share a binary interface: only a released pair imports together, so they are one choice.
TORCH_x86_64  := torch==2.14.1 torchvision==0.29.1
TORCH_aarch64 := torch==2.9.1 torchvision==0.24.1
TORCH ?= $(or $(TORCH_$(MACHINE)),torch torchvision)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format clean

help:
	@echo "make demo    build out/demo/index.html from the built-in checkpoints"
	@echo "make test    run the whole test suite"
	@echo "make lint    ruff, codespell and pyright"
	@echo "make format  apply ruff's fixes and formatting"
	@echo "make clean   remove caches and out/ (the .venv stays)"

venv: $(VENV)/installed

# One pip call, so that the resolver sees the pair and gendiff's own requirements together.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gendiff needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) -e '.[dev]'
	@touch $@

demo: venv
	$(BIN)/gendiff demo --out out/demo

test: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
