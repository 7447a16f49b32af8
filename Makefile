# Needs Python 3.11 or newer, git and make. `make demo` and `make test` do the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo

# Two processes, each of which keeps to one core; the group of tests that comes first starts first.
PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-slow test-all test-cluster models docs lint clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/g2is run --config examples/demo.yaml --workspace $(DEMO)
	@echo "The report is in $(DEMO)/report.html"

# Every mechanism once, in minutes.
test: $(VENV)/installed lint
	$(PYTEST) -m "not slow"

# What `test` leaves out: every stage killed, faults of nodes, autoscaling, large files, all
# architectures, and many generated examples.
test-slow: $(VENV)/installed
	$(PYTEST) -m "slow or fuzz" --hypothesis-profile thorough

# Both.
test-all: $(VENV)/installed lint
	$(PYTEST) --hypothesis-profile thorough

# Faults and autoscaling, on several Ray nodes on this machine; a part of `test-slow`.
test-cluster: $(VENV)/installed
	$(BIN)/python -m pytest -m cluster

# Tries every architecture of transformers: an hour on one core. What was tried before is kept.
models: $(VENV)/installed
	mkdir -p runs
	$(BIN)/python tests/helpers/architectures_table.py --results runs/models.jsonl --write docs/models.md

# The site, from docs/ and docstrings, in build/site. A broken link or reference fails.
docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO)
