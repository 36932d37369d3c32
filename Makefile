# `make lab` and `make test` need only Python 3.11+ and make; each builds .venv from requirements.txt the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# the run you trained last, else the model that ships
SHIPPED := checkpoints/shakespeare-lstm/config.json checkpoints/shakespeare-rnn/config.json
OWN = $(filter-out $(SHIPPED),$(shell ls -t checkpoints/*/config.json checkpoints/*/best/config.json 2>/dev/null))
CHECKPOINT ?= $(patsubst %/config.json,%,$(firstword $(OWN) $(SHIPPED)))
NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)
# what is taken out of a notebook before it is committed: widgets, which mean nothing without their kernel, and timings
STRIP := --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags=widget \
	--ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec

# of a notebook as a page: cells for readers on the web are left out, and what a closed page leaves behind ends in 10 minutes
PAGE := --Voila.ip=127.0.0.1 --show_tracebacks=True \
	--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=web \
	--MappingKernelManager.cull_interval=60 --MappingKernelManager.cull_idle_timeout=600

.PHONY: help lab playground train sample test unit nbval browser lint format notebooks clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

lab: $(READY) ## open the course in JupyterLab at notebook 00
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

playground: $(READY) ## open the playground alone, as a page in your browser
	$(BIN)/voila notebooks/playground.ipynb $(PAGE)

train: $(READY) ## train a model on all of Shakespeare, in less than three minutes
	$(BIN)/charrnn train config/laptop.yaml

sample: $(READY) ## write text with the model you trained last, else with the one that ships
	$(BIN)/charrnn sample $(CHECKPOINT)

test: unit nbval browser ## run every test and every notebook

unit: $(READY) ## run the unit tests alone
	$(BIN)/pytest --ignore tests/browser --numprocesses auto --dist worksteal

nbval: $(READY) ## run the notebooks alone, each cell's output compared with the committed one
	CHARRNN_PROFILE=ci $(BIN)/pytest --nbval --nbval-current-env --nbval-cell-timeout=120 --nbval-sanitize-with tests/nbval_sanitize.cfg $(NOTEBOOKS)

browser: $(READY) ## run the tests that drive a real browser alone; they are skipped where there is no Chromium or Chrome
	$(BIN)/pytest tests/browser

lint: $(READY) ## check style, format and spelling, notebooks too, and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/typos
	$(BIN)/mypy

format: $(READY) ## put style and format right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

notebooks: $(READY) ## execute the notebooks in place, for their outputs to be committed
	CHARRNN_PROFILE=laptop $(BIN)/jupyter execute --inplace $(NOTEBOOKS)
	$(BIN)/jupyter nbconvert --to notebook --inplace $(STRIP) $(NOTEBOOKS)

clean: ## remove the environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis data/.cache

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "charrnn needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; run: make PYTHON=/path/to/python3.12 ...")'
	@echo "setting up $(VENV); the first time this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(READY)
