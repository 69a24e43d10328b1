# make setup | demo | test | check | fix | bench | bench-gpu
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check fix bench bench-gpu clean

setup: .venv/.installed

# Plain pip on purpose: on machines without a GPU it is given torch's CPU build.
.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "megabert needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet -e ".[test,dev,tensorboard]"
	touch $@

demo: setup
	$(BIN)/megabert demo

test: setup
	$(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/pretrain.py --output bench.json

bench-gpu: setup
	$(BIN)/python benchmarks/pretrain.py --device cuda --cases large natural --batch-size 32 --compile --cuda-graphs --output bench-gpu.json

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .import_linter_cache
