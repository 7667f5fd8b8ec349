# Each target sets up what it needs in .venv when that is missing or the lock has changed.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test test-cluster faults lint format bench bench-local bench-loop bench-cluster images compile cluster cluster-down lock clean

help:  ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | sort | expand -t 16

setup: $(READY)  ## Make .venv with exactly the locked versions

$(READY): requirements.lock images/build.lock pyproject.toml setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH; next: install Python 3.11, or make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r images/build.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q components pipelines
	touch $@

demo: $(READY)  ## Train, judge, register and serve a detector; writes .flywheel/demo/page.html
	$(BIN)/flywheel demo

test: $(READY)  ## Run the tests that need no cluster
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not faults and not cluster" $(ARGS)

test-cluster: $(READY)  ## Run those that do, on a cluster that is brought up for them (Linux, Go; root for pods)
	FLYWHEEL_CLUSTER=1 $(BIN)/pytest -m "not faults and cluster" $(ARGS)

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

bench: bench-local bench-loop bench-cluster  ## Measure everything

bench-local: $(READY)  ## Measure this machine's flywheel; writes build/bench/local.json
	$(BIN)/python -m tests.bench.local

bench-loop: $(READY)  ## Measure canaries, drift and the demo; writes build/bench/loop.json
	$(BIN)/python -m tests.bench.loop

images: $(READY)  ## Build the images; REGISTRY=HOST/PATH pushes them and writes build/images.yaml
	$(BIN)/python images/build.py $(if $(REGISTRY),--registry $(REGISTRY)) $(ARGS)

bench-cluster: $(READY)  ## Measure the adapters of a cluster on a real one (Linux, Go, root); writes build/bench/cluster.json
	$(BIN)/python -m tests.bench.cluster

compile: $(READY)  ## Compile every pipeline and component into build/compiled
	$(BIN)/flywheel compile

cluster: $(READY)  ## Bring up a real Kubernetes with KubeRay and KServe on this machine (Linux, Go; root for pods)
	$(BIN)/python -m tests.cluster up

cluster-down: $(READY)  ## End it, and drop its state
	$(BIN)/python -m tests.cluster down --wipe

LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --no-emit-index-url --generate-hashes --no-annotate --no-header
OF_IMAGE := $(LOCK) --python-platform x86_64-manylinux_2_28 -c requirements.lock

lock: $(READY)  ## Resolve pyproject.toml anew: requirements.lock, and its part for each image
	$(LOCK) --universal --all-extras pyproject.toml -o requirements.lock
	printf '%s\n' setuptools uv | $(OF_IMAGE) - -o images/build.lock
	for profile in steps train serve; do $(OF_IMAGE) --extra $$profile pyproject.toml -o images/$$profile/requirements.lock || exit; done

clean:  ## Remove all that was made here, .venv too
	rm -rf .venv .flywheel build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
