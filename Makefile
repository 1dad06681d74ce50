# Each target sets up what it needs in .venv and needs no network after that.
#
#   make demo PY=python3.12    another interpreter
#   make demo TORCH=system     keep the torch that the interpreter already has
#
# On a GPU machine the same lines install torch's CUDA build, on a CPU machine its CPU build
# (from PIP_FIND_LINKS where that names a folder of wheels). `make clean` before changing either.

PY ?= python3
TORCH ?= pinned
BIN := .venv/bin
ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-t2i test test-long check format clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/.stamp-demo ## train on digits, sample, score, write runs/demo/report.html (77 s on two cores)
	$(BIN)/diffmoe demo

demo-t2i: .venv/.stamp-demo ## the same from captions: scenes of shapes, judged, runs/demo-t2i/report.html
	$(BIN)/diffmoe demo --text

test: .venv/.stamp-test ## the test suite
	$(ENV) $(BIN)/python -m pytest -n 2 tests

test-long: .venv/.stamp-test ## the full counts of the expensive promises
	$(ENV) $(BIN)/python -m pytest -m long --long tests

check: .venv/.stamp-dev ## format, lint, types and the house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(ENV) $(BIN)/python -m pytest tests/policy

format: .venv/.stamp-dev ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete the environment and the caches, keep the runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# A larger set of extras holds the smaller ones, so its installation stamps them too.
COVERS_demo := demo
COVERS_test := demo test
COVERS_dev := demo test dev

# uv does not read pip's settings: it is told where pip looks for wheels, or else to pick torch's
# build by the machine.
FIND_LINKS = $(or $(PIP_FIND_LINKS),$(shell $(PY) -m pip config get global.find-links 2>/dev/null))
UV = $(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)",UV_TORCH_BACKEND=auto) $(BIN)/uv pip
PIP = $(BIN)/python -m pip
WANTED = -c constraints.txt -e ".[$*]"
ifeq ($(TORCH),system)
INSTALL = $(PIP) install -e ".[$*]"
VENV_FLAGS = --system-site-packages
else
INSTALL = $(PIP) install --quiet uv \
	  && $(UV) install --python $(BIN)/python --compile-bytecode $(WANTED) \
	  || $(PIP) install $(WANTED)
endif

.venv/.stamp-%: pyproject.toml constraints.txt
	@$(PIP) --version >/dev/null 2>&1 || $(PY) -m venv --clear $(VENV_FLAGS) .venv
	$(INSTALL)
	@touch $(COVERS_$*:%=.venv/.stamp-%)
