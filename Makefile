# `make` alone prints what there is. Two commands matter: `make run` and `make test`.
PYTHON ?= python3
PYTHON313 ?= python3.13
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(patsubst %.py,%.ipynb,$(wildcard notebooks/*.py notebooks/solutions/*.py))
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: help run test test-colab soak publish lint format student badges clean clean-cache clean-weights
.PHONY: explorer report slides submission
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

run: $(VENV)/.installed  ## the built-in scenes, then the six notebooks: outputs, weights/demo/, figures/
	$(BIN)/python -m lib run

# Two processes, each with whole files of tests: what a file's tests share is made once.
test: lint $(VENV)/classic/.installed  ## lint, format, types, all tests and their coverage
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=lib --cov=handin --cov-report=term:skip-covered

# PYTHON313=/where/python3.13 make test-colab, where `python3.13` is not on the PATH
test-colab: .venv-colab/.installed  ## a replica of Colab: each notebook alone, from its .ipynb, in an empty folder
	.venv-colab/bin/python tests/colab_replica.py
	.venv-colab/bin/python tests/colab_replica.py 03_rpn --drive

lint: $(VENV)/.installed-dev  ## ruff's rules and format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rounding differs from one processor to the next, and a training carries it on: a limit must hold for all.
soak: $(VENV)/.installed-dev  ## the tests that train, from five seeds, with three sets of instructions; 200 kills
	for kind in default avx2 ""; do \
		env $${kind:+ATEN_CPU_CAPABILITY=$$kind} $(BIN)/python -m pytest -m trains --training-seeds 5 || exit 1; \
	done
	MASKRCNN_DAMAGES=2000 $(BIN)/python -m pytest tests/test_damage.py
	MASKRCNN_EXAMPLES=1250 $(BIN)/python -m pytest tests/test_properties.py
	$(BIN)/python -m pytest tests/test_interrupted.py --kills 200

# A notebook's code is formatted in the .ipynb (see pyproject.toml): the later half of each pair goes there and back.
format: $(VENV)/.installed-dev  ## format all code, and bring the notebooks' pairs into step
	$(BIN)/jupytext --quiet --sync $(NOTEBOOKS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/jupytext --quiet --to py:percent $(NOTEBOOKS)

explorer: $(VENV)/.installed  ## figures/explorer.html: the test images through all stages, a page that needs no kernel
	$(BIN)/python -m handin explorer

report: $(VENV)/.installed  ## report/: the run's numbers and figures, and the PDF where LaTeX is installed
	$(BIN)/python -m handin report

slides: $(VENV)/.installed  ## the deck for the five-minute video, from the same figures
	$(BIN)/python -m handin slides

submission: $(VENV)/.installed  ## the zip to hand in: code, executed notebooks, figures, report
	$(BIN)/python -m handin submission

student: $(VENV)/.installed  ## student/: the project with its parts and the notebooks' answers left to be written
	$(BIN)/python -m lib student

publish: $(VENV)/.installed  ## the tables, scores and picture of the run here become those that the repository ships
	cp figures/*.csv figures/*.tex figures/metrics.json figures/06_detections.png figures/published/
	$(BIN)/python -m handin index

badges: $(VENV)/.installed  ## the repository's name, from pyproject.toml to all places that spell it out
	$(BIN)/python -m lib badges

clean:  ## remove the environment and caches
	rm -rf $(VENV) .venv-colab .hypothesis .pytest_cache .ruff_cache .mypy_cache .coverage notebooks/*.failed.ipynb
	find lib tests notebooks benchmarks handin -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

clean-cache:  ## remove the stored maps that unfinished stages left, and copies of data files
	rm -rf data/*/features weights/copies

clean-weights:  ## forget what the demo's stages have learnt
	rm -rf weights/demo

$(VENV)/.installed: requirements.txt
	@echo "First the packages, once, into $(VENV). On Linux PyTorch comes with CUDA: some 3 GB to download, 6 GB on disk,"
	@echo "1 to 15 minutes. Without an NVIDIA GPU a tenth of that is enough: stop, and begin again with"
	@echo "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	touch $@

# Beside the environment's packages, and before them where PYTHONPATH says so (tests/jupyters.py).
$(VENV)/classic/.installed: requirements-classic.txt requirements-colab.txt $(VENV)/.installed-dev
	rm -rf $(@D)
	$(PIP) --quiet --no-deps --target $(@D) -r requirements-classic.txt
	touch $@

.venv-colab/.installed: requirements-colab.txt
	test -x .venv-colab/bin/python || $(PYTHON313) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-colab.txt
	touch $@
