# The few commands a person types. Each sets up what it needs in ./.venv with plain pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test test-long test-gpu benchmark benchmark-long lint format build cuda-build clean

demo: $(VENV)/.demo  ## lottery tickets in real handwritten digits, no download of data
	$(BIN)/python -m lth_fast lenet digits

test: $(VENV)/.test  ## the tests
	$(BIN)/python -m pytest

test-long: $(VENV)/.test  ## the tests that take minutes each
	$(BIN)/python -m pytest -m long --timeout 3600

test-gpu: $(VENV)/.test  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

benchmark: $(VENV)/.test  ## both sides of the claims of speed, as a table, in four to eleven minutes on two cores
	$(BIN)/python -m pytest benchmarks --benchmark-json=benchmarks/results/latest.json

benchmark-long: $(VENV)/.test  ## all of them; with SparseProp and SparseLab where they are installed
	$(BIN)/python -m pytest benchmarks -m 'not gpu' --benchmark-json=benchmarks/results/latest.json

lint: $(VENV)/.dev  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

build: $(VENV)/.native  ## rebuild the native libraries; a touched kernel takes seconds

cuda-build: $(VENV)/.test $(VENV)/.nvcc  ## build with CUDA kernels and check them; needs neither a GPU nor a toolkit
	PATH="$(CURDIR)/$(BIN):$$PATH" LTH_FAST_CUDA=ON $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	$(BIN)/python -m pytest tests/test_cuda_build.py

clean:
	rm -rf build $(VENV) lth_fast/*.so lth_fast/_build_info.py *.egg-info

# torch and the tools of the build come first, so that the package can be built against the torch it will run beside.
$(VENV)/.base:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision numpy "setuptools>=77" pybind11 ninja "cmake>=3.24"
	touch $@

$(VENV)/.native: $(VENV)/.base $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e .
	touch $@

# The compiler of the very CUDA release torch was built with: a newer one of its parts may not fit the others.
$(VENV)/.nvcc: $(VENV)/.base
	release="$$($(BIN)/python -c 'import torch; print(torch.version.cuda or "")')" && \
	if [ -z "$$release" ]; then echo "the installed torch is a build without CUDA: it cannot run CUDA kernels" >&2; exit 1; fi && \
	{ $(BIN)/python -m pip install --quiet "nvidia-cuda-nvcc==$$release.*" "nvidia-nvvm==$$release.*" "nvidia-cuda-crt==$$release.*" \
	    "nvidia-cuda-cccl==$$release.*" || \
	  { echo "nvcc could not be installed from its wheels (no network?): name a toolkit in CUDA_HOME and run" \
	         "LTH_FAST_CUDA=ON make build, or do without with LTH_FAST_CUDA=OFF" >&2; exit 1; }; }
	touch $@

$(VENV)/.demo: $(VENV)/.native
	$(BIN)/python -m pip install --quiet scikit-learn matplotlib
	touch $@

$(VENV)/.test: $(VENV)/.native
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@
