# `make run`   the built-in scenes, then the six notebooks: outputs, weights/demo/, figures/
# `make test`  lint, format and all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(patsubst %.py,%.ipynb,$(wildcard notebooks/*.py))

.PHONY: run test lint format badges clean clean-cache clean-weights
.DEFAULT_GOAL := run

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: $(VENV)/.installed
	$(BIN)/python -m lib.run

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A notebook's code is formatted in the .ipynb (see pyproject.toml): the later half of each pair goes there and back.
format: $(VENV)/.installed-dev
	$(BIN)/jupytext --quiet --sync $(NOTEBOOKS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/jupytext --quiet --to py:percent $(NOTEBOOKS)

badges: $(VENV)/.installed
	$(BIN)/python -m lib.badges

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache notebooks/*.failed.ipynb
	find lib tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

clean-cache: $(VENV)/.installed
	$(BIN)/python -m lib.features --remove

clean-weights:
	rm -rf weights/demo
