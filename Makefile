# make run    the main job on the embedded demo     make test   all tests
# make lint   ruff and mypy                         make clean  remove what the others made
# Each makes .venv when it is missing. PYTHON=python3.12 make run takes another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint format clean
run: .venv/ready
	$(BIN)/python -m gpuclust.run

test: .venv/ready
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS) --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
