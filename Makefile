# `make run`   the built-in scenes, then the six notebooks: outputs, weights/demo/, figures/
# `make test`  lint, format and all tests
# `make soak`  the tests that train, from five seeds and with each of three sets of the processor's instructions
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(patsubst %.py,%.ipynb,$(wildcard notebooks/*.py))

.PHONY: run test soak lint format badges clean clean-cache clean-weights
.DEFAULT_GOAL := run

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: $(VENV)/.installed
	$(BIN)/python -m lib run

test: lint
	$(BIN)/python -m pytest

# Rounding differs from one processor to the next, and a training carries it on: a limit must hold for all.
soak: $(VENV)/.installed-dev
	for kind in default avx2 ""; do \
		env $${kind:+ATEN_CPU_CAPABILITY=$$kind} $(BIN)/python -m pytest -m trains --training-seeds 5 || exit 1; \
	done

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
	$(BIN)/python -m lib badges

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache notebooks/*.failed.ipynb
	find lib tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

clean-cache:
	rm -rf data/*/features

clean-weights:
	rm -rf weights/demo
