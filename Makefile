# `make demo` and `make test` need a Python >= 3.10, a C++ compiler and make; the rest goes into .venv.
# `make PYTHON=python3.12 demo` chooses the Python. All paths are relative, so that the folder may
# have a space in its name.

PYTHON ?= python3
OP ?= dense_crf
RESULTS ?= build/benchmarks
PYTEST_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --no-build-isolation --no-compile --constraint constraints.txt
OLDEST := $(shell sed -n 's/^dependencies = .*"torch>=\([0-9.]*\)".*/\1.0/p' pyproject.toml)
CODE := $(shell find kernels csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FORMATTED := $(CODE) $(shell find tests/kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: help setup build demo test test-all test-oldest oldest-headers lint types format bench dist \
  peer clean
.DELETE_ON_ERROR:

help: ## this list (the default)
	@echo "segfast: two commands matter, the others help developers."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: build ## install, build, refine a labelling of a photograph: demo-output/demo.png
	@echo "==> segfast demo"
	@$(RUN) -m segfast demo
	@echo "         (segfast is $(VENV)/bin/segfast here)"

# What waits for nothing of each other runs at the same time; what a tool says stays together.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=line)

test: $(VENV)/created ## install, build, pass every check and test (PYTEST_ARGS="-k lattice")
	@$(MAKE) --no-print-directory --jobs=4 $(SYNC) lint types build peer || { \
	  echo "==> no test was run: see above what failed" >&2; exit 1; }
	@echo "==> tests"
	@$(RUN) -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

test-all: export SEGFAST_GEOMETRIES ?= 20000
test-all: PYTEST_ARGS += --all --giants
test-all: test ## the same without samples, with networks of gigabytes (before a release)

setup: $(VENV)/developer ## virtual environment .venv with all tools, versions of constraints.txt

build: $(VENV)/built ## compile what changed

lint: setup ## ruff and clang-format, changing nothing
	@echo "==> lint"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/clang-format --dry-run -Werror $(FORMATTED)

types: setup ## mypy
	@echo "==> types"
	@$(RUN) -m mypy

format: setup ## ruff and clang-format, changing files
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
	@$(VENV)/bin/clang-format -i $(FORMATTED)

bench: setup build peer ## measure OP=dense_crf against its peers: table and plot in RESULTS
	@echo "==> benchmark of $(OP)"
	@mkdir -p $(RESULTS)
	@$(RUN) -m segfast bench $(OP) --benchmark-json=$(RESULTS)/$(OP).json
	@$(RUN) -m benchmarks.report $(RESULTS)/$(OP).json

test-oldest: ## all tests with the oldest PyTorch that is promised (gigabytes; before a release)
	@rm -rf build/oldest && git clone --quiet . build/oldest
	@sed -e 's/^torch==.*/torch==$(OLDEST)/' -e 's/^setuptools==.*/setuptools==81.0.0/' \
	  constraints.txt >build/oldest/constraints.txt
	@$(MAKE) --no-print-directory -C build/oldest setup build peer
	@echo "==> tests with torch $(OLDEST)"
	@cd build/oldest && $(RUN) -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

oldest-headers: $(VENV)/oldest ## of PyTorch, for SEGFAST_TORCH_INCLUDE=$PWD/.venv/oldest/torch/include

dist: setup ## sdist and wheel (for this Python and kind of machine) in dist/
	@echo "==> sdist and wheel: compiles everything, minutes"
	@$(RUN) -m build --no-isolation --outdir dist

peer: $(VENV)/peer ## try to install pydensecrf, to compare with it

clean: ## remove the environment and all that was built
	rm -rf $(VENV) build dist demo-output segfast.egg-info segfast/_C.*
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

# --- what the verbs stand on: each stamp is older than what it was made from, or made again -----

$(VENV)/created:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "segfast needs Python >= 3.10; '$(PYTHON)' is" \
	    "$$("$(PYTHON)" --version 2>&1 | head -n 1): make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "==> virtual environment in $(VENV): $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/user: $(VENV)/created constraints.txt pyproject.toml setup.py
	@echo "==> installing PyTorch and what else segfast needs (a large download, once)"
	@$(INSTALL) torch numpy pybind11 setuptools wheel
	@SEGFAST_CPP=0 $(INSTALL) --quiet --editable '.[demo]'
	@touch $@

$(VENV)/developer: $(VENV)/user
	@echo "==> installing the developers' tools"
	@SEGFAST_CPP=0 $(INSTALL) --quiet --editable '.[dev]'
	@touch $@

# Without a compiler setup.py says so and the reference serves: no stamp, the next make looks again.
$(VENV)/built: $(VENV)/user $(CODE)
	@echo "==> compiling the kernels for this Python (what changed; all takes minutes," \
	  "CUDA's with nvcc included: SEGFAST_CUDA=0 leaves them out)"
	@$(RUN) setup.py --quiet build_ext --inplace
	@if ls segfast/_C.* >/dev/null 2>&1; then touch $@; fi

# A build serves its own and every newer PyTorch.
$(VENV)/oldest: $(VENV)/created pyproject.toml
	@echo "==> headers of torch $(OLDEST), the oldest that is promised"
	@rm -rf $@ $@.wheel
	@$(PIP) download --quiet --no-deps --only-binary :all: --dest $@.wheel torch==$(OLDEST)
	@$(RUN) -c 'import pathlib, zipfile; there = pathlib.Path("$@"); \
	  wheel = zipfile.ZipFile(next(there.with_suffix(".wheel").glob("*.whl"))); \
	  wheel.extractall(there, [n for n in wheel.namelist() if n.startswith("torch/include/")])'
	@rm -rf $@.wheel && touch $@

# Optional: it comes as sources, which are compiled here and do not suit newer Pythons.
$(VENV)/peer-compiled: $(VENV)/created
	@echo "==> trying to compile pydensecrf (optional, to compare with; a minute)"
	@if ! $(RUN) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
	  echo "    goes without: its sources do not compile for Python 3.13 and newer"; \
	elif ! $(PIP) wheel --quiet --no-deps --constraint constraints.txt \
	    --wheel-dir $(VENV)/peer-wheel pydensecrf2 >$(VENV)/peer.log 2>&1; then \
	  echo "    goes without: it could not be compiled, see $(VENV)/peer.log"; \
	fi
	@touch $@

# After the tools: one pip at a time changes the environment.
$(VENV)/peer: $(VENV)/peer-compiled $(VENV)/developer
	@if [ -d $(VENV)/peer-wheel ]; then $(PIP) install --quiet --no-deps $(VENV)/peer-wheel/*.whl; fi
	@touch $@
