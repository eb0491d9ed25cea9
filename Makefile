PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench zoo docs clean

demo: .venv/.run
	$(BIN)/shiftscope compare models --out demo

test: .venv/.dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

zoo: .venv/.dev
	OMP_NUM_THREADS=2 $(BIN)/python -m shiftscope.zoo

.venv/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) "torch==2.13.0"
	$(INSTALL) --editable .
	touch $@

.venv/.dev: .venv/.run
	$(INSTALL) --editable ".[dev]"
	$(INSTALL) --no-deps "open_clip_torch==3.3.0"  # for its list of merges: a real tokenizer; the package is not imported
	touch $@

clean:
	rm -rf .venv demo site
