# Targets set up their own environment in .venv; they need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RUN := runs/solar-cells
EXPERIMENT := frozen unfrozen from-scratch
PEERS := .venv-bench/.ready

.PHONY: setup demo experiment test check docs bench bench-quick bench-accuracy bench-views clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ftcli needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $@

# Trains the solar cells in two stages and evaluates the result; interrupted, it goes on where it stopped.
demo: setup
	if [ -e $(RUN)/last.pt ]; then $(BIN)/ftcli train --resume $(RUN)/last.pt; \
	else $(BIN)/ftcli train configs/solar-cells.yaml; fi
	$(BIN)/ftcli evaluate $(RUN)/best_loss.pt

# Trains the solar cells with a pretrained network that is frozen, one that is not, and one that is not pretrained, and
# compares the three. What is trained already is not trained again; interrupted, it goes on where it stopped.
experiment: setup
	for name in $(EXPERIMENT); do \
		if [ -e runs/$$name/last.pt ]; then $(BIN)/ftcli train --resume runs/$$name/last.pt || exit; \
		else $(BIN)/ftcli train configs/$$name.yaml || exit; fi; \
	done
	$(BIN)/ftcli compare $(EXPERIMENT:%=runs/%) --out runs/experiment.png

# Two processes with a thread each take half the time of one with two: small tensors gain nothing from threads.
test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Writes docs/models.md, docs/recipe.md, docs/recipe-tests.md and configs/recipe.schema.json anew.
docs: setup
	$(BIN)/python -m docs.generator

# Measures ftcli beside other loops and writes docs/benchmarks.md, in about half an hour on two cores that do nothing
# else, the quick look in less than five minutes; interrupted, it goes on where it stopped.
bench: setup $(PEERS)
	$(BIN)/python -m benchmarks

bench-quick: setup $(PEERS)
	$(BIN)/python -m benchmarks --quick

# Measures how long it takes to the accuracy of the tutorials' loop, and how many views of an image are worth keeping;
# each takes ten to fifteen minutes.
bench-accuracy: setup $(PEERS)
	$(BIN)/python -m benchmarks --rows 8 --resume

bench-views: setup
	$(BIN)/python -m benchmarks.views

# The other loops have an environment of their own. What pip says is shown where it fails.
$(PEERS): requirements.lock benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		--requirement benchmarks/requirements.txt 2> .venv-bench/said || { cat .venv-bench/said >&2; exit 1; }
	touch $@

clean:
	rm -rf .venv .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
