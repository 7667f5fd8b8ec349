# Each target sets up what it needs in .venv when that is missing or the lock has changed.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test faults lint format bench bench-local compile cluster cluster-down lock clean

help:  ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | sort | expand -t 16

setup: $(READY)  ## Make .venv with exactly the locked versions

$(READY): requirements.lock pyproject.toml setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH; next: install Python 3.11, or make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q components pipelines
	touch $@

demo: $(READY)  ## Train, judge, register and serve a detector; writes .flywheel/demo/page.html
	$(BIN)/flywheel demo

test: $(READY)  ## Run the tests
	$(BIN)/pytest $(ARGS)

faults: $(READY)  ## Run the full matrix of injected faults
	$(BIN)/pytest -m faults $(ARGS)

lint: $(READY)  ## Check style, types and the rules of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lib build/lint
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --target build/lint .
	MYPYPATH=build/lint $(BIN)/mypy -p kfp_flywheel
	$(BIN)/lint-imports

format: $(READY)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-local  ## Measure everything

bench-local: $(READY)  ## Measure this machine's flywheel; writes build/bench/local.json
	$(BIN)/python -m tests.bench.local

compile: $(READY)  ## Compile every pipeline and component into build/compiled
	$(BIN)/flywheel compile

cluster: $(READY)  ## Bring up a real Kubernetes with KubeRay and KServe on this machine (Linux, Go; root for pods)
	$(BIN)/python -m tests.cluster up

cluster-down: $(READY)  ## End it, and drop its state
	$(BIN)/python -m tests.cluster down --wipe

lock: $(READY)  ## Resolve pyproject.toml into requirements.lock anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
		--no-annotate --no-header --all-extras pyproject.toml -o requirements.lock

clean:  ## Remove all that was made here, .venv too
	rm -rf .venv .flywheel build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
