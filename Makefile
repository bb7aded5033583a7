# Each target creates .venv itself; only Python 3.11 or newer and make are required.
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

# Trains on the solar cells in two stages and evaluates the result. An interrupted training resumes.
demo: setup
	if [ -e $(RUN)/last.pt ]; then $(BIN)/ftcli train --resume $(RUN)/last.pt; \
	else $(BIN)/ftcli train configs/solar-cells.yaml; fi
	$(BIN)/ftcli evaluate $(RUN)/best_loss.pt

# Trains on the solar cells with a frozen pretrained network, an unfrozen one and random weights, and compares the three.
# Finished runs are not repeated; an interrupted training resumes.
experiment: setup
	for name in $(EXPERIMENT); do \
		if [ -e runs/$$name/last.pt ]; then $(BIN)/ftcli train --resume runs/$$name/last.pt || exit; \
		else $(BIN)/ftcli train configs/$$name.yaml || exit; fi; \
	done
	$(BIN)/ftcli compare $(EXPERIMENT:%=runs/%) --out runs/experiment.png

# Two processes with one thread each are faster than one process with two threads, because the tensors are small.
test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Generates docs/models.md, docs/recipe.md, docs/recipe-tests.md and configs/recipe.schema.json.
docs: setup
	$(BIN)/python -m docs.generator

# Compares ftcli with other training loops and writes docs/benchmarks.md (half an hour on two idle cores; the quick
# version takes less than five minutes). An interrupted measurement continues.
bench: setup $(PEERS)
	$(BIN)/python -m benchmarks

bench-quick: setup $(PEERS)
	$(BIN)/python -m benchmarks --quick

# Measure the time to the tutorial loop's accuracy, and the effect of the number of cached views (10 to 15 minutes each).
bench-accuracy: setup $(PEERS)
	$(BIN)/python -m benchmarks --rows 8 --resume

bench-views: setup
	$(BIN)/python -m benchmarks.views

# The other loops have their own environment. The output of pip is shown if it fails.
$(PEERS): requirements.lock benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		--requirement benchmarks/requirements.txt 2> .venv-bench/pip.log || { cat .venv-bench/pip.log >&2; exit 1; }
	touch $@

clean:
	rm -rf .venv .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
