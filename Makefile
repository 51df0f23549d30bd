# `make help` lists the targets. Each creates what it needs, once: the virtual environment in .venv,
# and in it this package (editable) with its development tools.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SPARSIGHT := $(BIN)/sparsight
SPARSIGHT_DATA ?= data
TEACHER ?= sentence-transformers/all-MiniLM-L6-v2
WORDNET ?= /usr/share/wordnet
export SPARSIGHT_DATA
# Large blocks stay with the process: glibc otherwise returns and re-faults them at every training step.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=500000000

.DEFAULT_GOAL := help
.PHONY: help install index serve test test-page test-scale soak train eval bench results lint fix clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-9s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.train $(VENV)/.bench: $(VENV)/.%: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/.scale: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray,milvus]'
	@touch $@

install: $(INSTALLED) ## create .venv and install sparsight in it

index: $(INSTALLED) ## build both indexes into index/ (CIFAR-10 from SPARSIGHT_DATA, else the bundled embeddings)
	$(SPARSIGHT) index

serve: $(INSTALLED) ## serve the page over index/, at http://127.0.0.1:8321/
	$(SPARSIGHT) serve

test: $(INSTALLED) ## run the tests, a process for each core up to four
	$(BIN)/python -m pytest -rs -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-page: $(INSTALLED) ## test the page in a browser; installs Debian's chromium where it is missing and may be
	command -v chromedriver >/dev/null || { apt-get update && apt-get install -y chromium chromium-driver; }
	$(BIN)/python -m pytest -rs tests/test_page.py tests/test_serve.py tests/test_serve_command.py tests/test_serve_fuzz.py

test-scale: $(VENV)/.scale ## test the build on Ray and an index in Milvus
	$(BIN)/python -m pytest -rs tests/scale

soak: $(INSTALLED) ## test at length that the store can be trusted: every kill, fault and reader; prints the figures
	SPARSIGHT_SOAK=1 $(BIN)/python -m pytest -rP --show-capture=stdout \
		tests/test_crash.py tests/test_failing.py tests/test_concurrency.py tests/test_changes.py \
		tests/test_damage.py tests/test_damage_tables.py tests/test_arguments.py

train: $(VENV)/.train ## train the encoder anew into runs/encoder, in three stages and one of words (resumes a stopped one)
	$(TRAIN_ENV) $(SPARSIGHT) train --out runs/first
	$(TRAIN_ENV) $(SPARSIGHT) train --from runs/first --out runs/second --sizes 28x4,32x9 --lr 0.09 --shift 4 \
		--cutout 10 --seed 1
	$(TRAIN_ENV) $(SPARSIGHT) train --from runs/second --out runs/third --sizes 28x7,32x13 --lr 0.09 --shift 4 \
		--cutout 10 --degrade 0.3 --seed 2 --teacher $(TEACHER)
	$(TRAIN_ENV) $(SPARSIGHT) train --from runs/third --sizes 32x0 --seed 3 --teacher $(TEACHER) --teacher-epochs 2 \
		--wordnet $(WORDNET)

eval: $(INSTALLED) ## write report/: what the codes cost and give, from index/
	$(SPARSIGHT) eval

results: $(INSTALLED) ## write the figures of README and docs from report/ and bench/
	$(BIN)/python -m eval.results

bench: $(VENV)/.bench ## time the coder and the searches; writes bench/results.json
	$(BIN)/python -m eval.bench

lint: $(INSTALLED) ## check style, types, the direction of imports, and that dependencies are declared and used
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry .

fix: $(INSTALLED) ## mend style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment, caches and what was built
	rm -rf $(VENV) build dist *.egg-info index report .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
