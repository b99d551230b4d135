# `make` lists what there is. Everything works on Debian with python3, make and pip alone.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
HW := $(BIN)/hw

.DEFAULT_GOAL := help
.PHONY: help up restart down logs status clean test coverage coverage-report bench check lint types format audit sbom lock venv

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: .venv/complete ## Make the Python environment

up: venv ## Start everything in the background (ARGS="--reload", "--keycloak" and the like)
	@$(HW) up $(ARGS) || [ $$? = 130 ]  # ended by Ctrl-C

restart: venv ## Restart the application alone (ARGS=--rolling: one server after the other)
	@$(HW) restart $(ARGS) || [ $$? = 130 ]

down: venv ## Stop everything; the data stays
	@$(HW) down

logs: venv ## Follow the application's log
	@$(HW) logs --follow || [ $$? = 130 ]

status: venv ## Show every process
	@$(HW) status

clean: venv ## Stop everything and remove the data (asks first)
	@$(HW) clean

test: venv ## Run all tests (ARGS="tests/authors -k create")
	@$(BIN)/$(if $(COVERAGE),coverage run,python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: venv ## Run all tests and report the branches of src/hw_server that none takes
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test COVERAGE=1
	@$(MAKE) --no-print-directory coverage-report

coverage-report: venv
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

bench: venv ## Measure against a floor in the same run
	@$(BIN)/python -m bench $(ARGS)

check: lint types coverage ## Check all that continuous integration checks, but the container stack

lint: venv ## Check the style and the direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(HW) migrate check >/dev/null
	@$(BIN)/lint-imports >/dev/null || $(BIN)/lint-imports

types: venv ## Check the types
	@$(BIN)/mypy

format: venv ## Mend the style
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

OSV_URL ?= https://api.osv.dev/v1/query
audit: .venv/audit/complete ## Look every pinned package up among the known vulnerabilities of osv.dev (OSV_URL: a mirror of it)
	@.venv/audit/bin/python -c 'import requests; requests.head("$(OSV_URL)", timeout=20)' 2>/dev/null || \
	    { echo "$(OSV_URL) is out of reach; behind a proxy set HTTPS_PROXY, or OSV_URL to a mirror"; exit 1; }
	@failed=0; for file in base dev keycloak audit; do \
	    echo "requirements/$$file.txt"; \
	    .venv/audit/bin/pip-audit --progress-spinner off --disable-pip --require-hashes --vulnerability-service osv \
	        --osv-url "$(OSV_URL)" -r requirements/$$file.txt $(ARGS) || failed=1; \
	done; exit $$failed

sbom: .venv/audit/complete ## Write what the server is made of to sbom.json (CycloneDX)
	@.venv/audit/bin/cyclonedx-py requirements requirements/base.txt --pyproject pyproject.toml -o sbom.json

.venv/audit/complete: .venv/complete requirements/audit.txt
	@$(PYTHON) -m venv --without-pip .venv/audit
	@$(PYTHON) -m pip --python .venv/audit/bin/python install -q --disable-pip-version-check --require-hashes -r requirements/audit.txt && touch $@

lock: ## Pin requirements/*.in anew (needs uv)
	@command -v uv >/dev/null || { echo "uv is missing: pip install uv (or pipx install uv)"; exit 1; }
	@pin() { uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
	    --python-version 3.11 "$$@"; }; \
	pin requirements/base.in -o requirements/base.txt && \
	pin requirements/base.in requirements/dev.in -c requirements/base.txt -o requirements/dev.txt && \
	pin requirements/keycloak.in -o requirements/keycloak.txt && \
	pin requirements/audit.in -o requirements/audit.txt

# Without ensurepip (Debian keeps it in python3-venv): the system's pip installs into the new environment.
# Its programs name the folder that it was made in, so an environment that was moved is made anew.
MOVED := $(shell test -e .venv/complete && { grep -qsF "$(CURDIR)/.venv/" $(HW) || echo moved; })
.PHONY: moved
moved:
	@echo "  this folder was moved or copied"
	@rm -rf .venv

.venv/complete: requirements/dev.txt pyproject.toml clients/python/pyproject.toml $(MOVED)
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is missing: apt-get install python3, or set PYTHON=..."; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "$(PYTHON) has no pip: apt-get install python3-pip"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; set PYTHON=..."; exit 1; }
	@# In a session of its own: pip answers Ctrl-C with a traceback.
	@trap 'kill -- -$$! 2>/dev/null; printf "\n  interrupted; make venv again goes on\n"; kill -INT $$PPID; exit 0' INT; \
	echo "  making the Python environment (half a minute)"; \
	run() { setsid "$$@" & wait $$!; }; \
	install() { run $(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check "$$@"; }; \
	run $(PYTHON) -m venv --without-pip .venv && install --require-hashes -r requirements/dev.txt && \
	install --no-deps --no-build-isolation -e . -e clients/python && touch $@
	@echo "  the Python environment is ready"

-include docker/stack.mk deploy/kubernetes.mk
