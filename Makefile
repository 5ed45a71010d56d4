# Every target that needs Python installs into .venv first, through constraints.txt, and only again when
# what it was built from has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Of the native part. They come into .venv rather than into a throw-away build environment, so that
# constraints.txt pins them too and a changed header costs seconds, not a fresh build.
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
# Without the native tests, which are compiled by pytest.
NATIVE := $(filter-out scheduler/native/ring_test%,$(wildcard scheduler/native/*.?pp))
# Of the tests, side by side: many wait for processes to start.
JOBS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check format bench peers fuzz gpu-check gpu-bench image proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## create .venv, install everything, build the native part

demo: setup ## start the server, replay 20 years of S&P 500 history through it, stop it
	$(BIN)/python -m examples.sp500.demo

serve: setup ## run the server in the foreground; ARGS="--grpc-port 9001" adds options
	$(BIN)/tickring-server $(ARGS)

test: setup ## run the tests; ARGS="-m 'not slow'" adds options, JOBS=1 runs one after the other
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: setup ## look at format, lint, types and dead code; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/vulture

format: setup ## bring the Python files into shape
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: setup ## run the performance gates; takes minutes and wants a quiet machine
	$(BIN)/python -m pytest bench $(ARGS)

peers: setup ## measure beside PyTriton, Ray Serve and MLServer, each installed into build/peers; minutes
	$(BIN)/python -m bench.peers $(ARGS)

fuzz: setup ## send a server what nobody should, for minutes; ARGS="--seed 2" adds options
	$(BIN)/python -m tests.fuzz $(ARGS)

# Without a device pytest would skip every test and end with 0.
gpu-check: setup ## run the tests that need a GPU; fails where there is none
	@$(BIN)/python -c 'import sys, torch; \
		sys.exit(not torch.cuda.is_available() and f"gpu-check: no CUDA device here for torch {torch.__version__}")'
	$(BIN)/python -m pytest -m gpu $(ARGS)

gpu-bench: setup ## measure the models and the service on a GPU; ARGS="..." adds options
	$(BIN)/python -m bench.gpu $(ARGS)

image: ## build the container image tickring:gpu; needs Docker
	docker build -f Dockerfile.gpu --build-arg REVISION="$$(git rev-parse HEAD)" -t tickring:gpu .

proto: setup ## generate the Python stubs from the protos again
	$(BIN)/python proto/generate.py

clean: ## remove .venv, builds and caches
	rm -rf $(VENV) build dist .benchmarks .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	@command -v $(PYTHON) >/dev/null || { echo 'setup: no $(PYTHON) here; say make PYTHON=<Python 3.11 to 3.13>' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "setup: needed is Python 3.11 to 3.13, $(PYTHON) is $$($(PYTHON) -V 2>&1); say make PYTHON=<another>" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'setup: $(PYTHON) lacks its venv module (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
		{ echo 'setup: $(PYTHON) lacks its C headers (Debian: apt-get install python3-dev)' >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo 'setup: no C++17 compiler here (Debian: apt-get install g++)' >&2; exit 1; }
	@echo 'setup: installing into $(VENV); the first time takes minutes'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $(BUILD_TOOLS)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[server,gpu,demo,dev]'
	@touch $@
