# `make demo` sets up .venv where needed and runs the main job; `make test` sets up and runs the tests.

PYTHON ?= python3
# Extra arguments for pip. On Linux without a GPU this saves gigabytes:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo test test-all check bench format clean

demo: .venv/ready
	$(BIN)/splitrank run offline

# One process a core, each with one thread: two at once wait for each other when they are disturbed.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

# Real weights, AG News, a browser, Ray and trackers too; SPLITRANK_SHARED names the folder that holds data/agnews.
test-all: .venv/all
	$(BIN)/pytest -m ""

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

# All speed claims, some 15 minutes on two idle cores; SPLITRANK_SHARED as above. Flower is one of the rivals.
bench: .venv/all
	$(BIN)/python -m benchmarks

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import platform, sys; \
	  sys.version_info >= (3, 11) or sys.exit("splitrank needs Python 3.11 or newer; try make PYTHON=python3.12"); \
	  (sys.platform, platform.machine()) != ("darwin", "x86_64") or sys.exit("PyTorch has no build for Intel Macs any more, so splitrank cannot be installed on one")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c requirements.txt hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c requirements.txt --no-build-isolation -e ".[offline,dev]"
	@touch $@

.venv/all: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c requirements.txt --no-build-isolation -e ".[offline,flower,tracking,dev]"
	@touch $@

clean:
	rm -rf .venv
