# make run    the main job on the embedded demo     make test   all tests
# make questions  the questions on the embedded demo: minutes
# make lint   ruff and mypy                         make clean  remove what the others made
# make docs   the documentation's site, into build/site
# make mutants  wrong lines, one at a time, on a copy: which do the tests not notice? (scripts/mutants.py)
# make test-faults  kills, damaged files, full disks, bad inputs (tests/faults): hours; FAULTS="damages --every 10" for some
# Each makes .venv when it is missing. PYTHON=python3.12 make run takes another interpreter.
# make test-latest  the tests with the newest packages that the ranges allow, make test-oldest with the oldest ones,
#   each in an environment of its own for each Python: PYTHON=python3.13 make test-latest
# make test-wheel   build the wheel, install it alone with the newest Python and packages found, use it elsewhere
# make test-cuda-contract   the GPU path's calls against RAPIDS, without a GPU; its environment takes 6 GB
# make cuda-resolve         whether pip can put the cuda13 extra beside the project's own pins; installs nothing
# make test-gpu             tests that need a GPU            make bench-gpu   benchmarks/gpu.py: one JSON file
PYTHON ?= python3
BIN := .venv/bin
PYTEST := -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: run test test-faults mutants lint docs format clean questions test-latest test-oldest test-wheel test-cuda-contract cuda-resolve test-gpu bench-gpu gpu
run: .venv/ready
	$(BIN)/python -m gpuclust.run

questions: .venv/ready
	$(BIN)/python -m gpuclust.sweep configs/questions.yaml

test: .venv/ready
	$(BIN)/python $(PYTEST)

test-faults: .venv/ready
	$(BIN)/python -m tests.faults $(FAULTS)

mutants: .venv/ready
	$(BIN)/python scripts/mutants.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS) --editable ".[dev]"
	touch $@

# uv takes the oldest versions as well as the newest. UV_ARGS, such as "--torch-backend cpu", is handed on to it.
MINOR = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
test-latest test-oldest: test-%: pyproject.toml .venv/ready
	$(BIN)/python -m uv venv --quiet --clear --python "$(PYTHON)" .venv-$*-$(MINOR)
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python .venv-$*-$(MINOR)/bin/python $(UV_ARGS) \
	  --resolution $(if $(filter latest,$*),highest,lowest-direct) --editable ".[dev]"
	.venv-$*-$(MINOR)/bin/python $(PYTEST)

test-wheel: .venv/ready
	$(BIN)/python scripts/check_wheel.py --python "$$($(BIN)/python scripts/newest_python.py)" $(WHEEL_ARGS)

.venv-cuda/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints.txt $(PIP_ARGS) --editable ".[dev,cuda13]"
	touch $@

test-cuda-contract: .venv-cuda/ready
	GPUCLUST_REQUIRE_CUDA13=1 .venv-cuda/bin/python -m pytest tests/test_cuda_contract.py

cuda-resolve: .venv/ready
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --constraint constraints.txt $(PIP_ARGS) --report build/cuda13.json ".[cuda13]"
	@$(BIN)/python -c "import json; print('\n'.join(sorted(f\"{p['metadata']['name']}=={p['metadata']['version']}\" for p in json.load(open('build/cuda13.json'))['install'] if any(w in p['metadata']['name'] for w in ('cu13', 'cuda', 'cupy', 'rapids', 'torch')))))"

# GPU_PYTHON=python takes an environment that is there already, such as one without a package index.
GPU_PYTHON ?= .venv-cuda/bin/python
gpu:
	@$(PYTHON) -c "import ctypes; ctypes.CDLL('libcuda.so.1')" 2>/dev/null || { echo "this needs an NVIDIA GPU and its driver: libcuda.so.1 is not on this machine" >&2; exit 2; }
	@test -x "$$(command -v $(GPU_PYTHON))" || $(MAKE) .venv-cuda/ready

test-gpu: gpu
	GPUCLUST_REQUIRE_GPU=1 $(GPU_PYTHON) -m pytest -m gpu

bench-gpu: gpu
	$(GPU_PYTHON) -m benchmarks.gpu --json build/gpu.json

clean:
	rm -rf .venv .venv-* runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
