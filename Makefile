# `make` lists what there is. Everything works on Debian with python3, make and pip alone.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
HW := $(BIN)/hw

.DEFAULT_GOAL := help
.PHONY: help up down logs status clean test bench lint types format lock venv

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: .venv/complete ## Make the Python environment

up: venv ## Start everything in the background (ARGS="--keycloak" and the like)
	@$(HW) up $(ARGS)

down: venv ## Stop everything; the data stays
	@$(HW) down

logs: venv ## Follow the application's log
	@$(HW) logs --follow

status: venv ## Show every process
	@$(HW) status

clean: venv ## Stop everything and remove the data (asks first)
	@$(HW) clean

test: venv ## Run all tests (ARGS="tests/test_authors.py -k create")
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

bench: venv ## Measure against a floor in the same run
	@$(BIN)/python -m bench $(ARGS)

lint: venv ## Check the style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: venv ## Check the types
	@$(BIN)/mypy

format: venv ## Mend the style
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: ## Pin requirements/*.in anew (needs uv)
	@for name in base dev keycloak; do \
	  uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
	    --python-version 3.11 requirements/$$name.in $$([ $$name = dev ] && echo -c requirements/base.txt) \
	    -o requirements/$$name.txt || exit 1; \
	done

# Without ensurepip (Debian keeps it in python3-venv): the system's pip installs into the new environment.
.venv/complete: requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "pip is missing: apt-get install python3-pip"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@echo "  making the Python environment (half a minute)"
	@$(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "  the Python environment is ready"

-include docker/stack.mk
