# make demo        train the embedded default and evaluate it
# make test        all tests but the slow ones, which `make test-slow` runs
# make lint        ruff and pyright
# make bench       this project beside torchvision, compile times, throughput and growth: tables, and JSON in runs/
#
# They set themselves up in .venv and need only Python and make. PYTHON chooses the interpreter: one of another version
# than .venv's, as in `make test PYTHON=python3.12`, gets an environment of its own beside it, such as .venv-3.12.

PYTHON ?= python3

version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
present := $(shell sed -n 's/^version *= *\([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2>/dev/null)
venv := $(if $(filter-out $(version),$(present)),.venv-$(version),.venv)
python := $(venv)/bin/python
pip := $(python) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint bench setup constraints

demo: setup
	$(python) train.py --workdir runs/shapes
	$(python) eval.py --workdir runs/shapes

# By file, so that what a file compiles is compiled in one process only, and in the order in which they are collected.
test: setup
	$(python) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: setup
	$(python) -m pytest -q -m slow --durations 0

lint: setup
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m pyright --pythonpath $(python)

# Beside torchvision where it is installed: it is no dependency of this project.
bench: setup
	$(python) -m benchmarks.peers
	$(python) -m benchmarks.compile_time
	$(python) -m benchmarks.throughput
	$(python) -m benchmarks.curves

setup: $(venv)/.installed

# Needs uv. One file for all versions of Python and all systems: lines that differ between them say where they hold.
constraints:
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --output-file constraints.txt pyproject.toml

$(venv)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; choose one with: make PYTHON=python3.12")'
	test -x $(python) || $(PYTHON) -m venv $(venv)
	$(pip) --no-compile --require-hashes --requirement constraints.txt
	$(pip) --no-deps --no-build-isolation --editable .
	@touch $@
