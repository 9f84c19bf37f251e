# Each target makes the virtual environment .venv, when there is none, and installs what it needs: `make PYTHON=python3.12 TORCH=torch==2.11.0 demo`
# chooses others for a new one.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# Each worker takes tests that stand together, and at the end some of the other's: networks that a file makes once are made once.
WORKERS := -n 2 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := setup.py pyproject.toml csrc/flags.txt csrc/cpu/isa/flags.txt csrc/cuda/flags.txt \
	$(shell find csrc/cpu csrc/cuda csrc/engine python -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo build test test-all lint asan races avxvnni fuzz bench peers gpu-check gpu-tune gpu-peers clean

demo: $(VENV)/native.stamp
	$(BIN)/mvit-kernels demo --out out

build: $(VENV)/native.stamp

# The suite of a developer: some 10 minutes on 2 cores.
test: lint $(VENV)/dev.stamp
	$(MAKE) --no-print-directory -j2 -C csrc test
	$(BIN)/python -c "import mvit_kernels._cpu"
	$(BIN)/python -m pytest -q $(WORKERS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q $(WORKERS) tests/test_triton_*.py

# What takes longer: every model variant, sanitizers, installation from scratch. Under an hour.
test-all: asan races avxvnni $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q $(WORKERS) -m "slow and not gpu"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q $(WORKERS) -m "slow and not gpu" tests/test_triton_*.py --deselect tests/test_triton_aot.py
	$(BIN)/python -m pytest -q benchmarks/bench_*.py --benchmark-disable

# Thousands of random networks, compiled, against the interpreter.
fuzz: $(VENV)/dev.stamp
	MVIT_KERNELS_FUZZ=5000 $(BIN)/python -m pytest -q tests/test_engine_fuzz.py tests/test_graph_fuzz.py -k wanted -m slow

asan:
	$(MAKE) --no-print-directory -j2 -C csrc test SANITIZE=address,undefined

races:
	$(MAKE) --no-print-directory -j2 -C csrc races

avxvnni:
	$(MAKE) --no-print-directory -j2 -C csrc avxvnni

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc python -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

bench: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q benchmarks/bench_*.py --benchmark-quiet --results benchmarks/results

# Against every other way to run the same networks; `make peers MODEL=efficientformer_l1 BATCH=1 SIZE=224` prints one comparison and keeps no record.
peers: $(VENV)/peers.stamp
	$(BIN)/python benchmarks/peers.py $(if $(MODEL)$(BATCH)$(SIZE),\
		$(if $(MODEL),--models $(MODEL)) $(if $(BATCH),--batches $(BATCH)) $(SIZE:%=--size %),--results benchmarks/results)
	$(if $(MODEL)$(BATCH)$(SIZE),,$(BIN)/python benchmarks/chart.py)

# On a machine with a GPU, by the Python that has its torch and Triton; nothing is installed, so no network is needed.
# `make PYTHON=python gpu-check`; `make gpu-peers MODEL=mobilevit_s BATCH=8` compares one network with torch.compile's max-autotune.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

gpu-tune:
	$(PYTHON) benchmarks/gpu_tune.py $(if $(MODEL),--models $(MODEL)) $(if $(BATCH),--batches $(BATCH))

gpu-peers:
	$(PYTHON) benchmarks/gpu_peers.py $(if $(MODEL),--model $(MODEL)) $(if $(BATCH),--batch $(BATCH))

$(VENV)/install.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)"
	$(PIP) "setuptools>=77" wheel "pybind11>=2.13" ninja
	MVIT_KERNELS_NATIVE=0 MVIT_KERNELS_CUDA=0 $(PIP) --no-build-isolation -e ".[demo,scaling]"
	touch $@

# Built in place, only what changed. A failed build is an error here, not a package without kernels; without nvcc there are none for GPUs, which
# the tests of what it made say.
$(VENV)/native.stamp: $(VENV)/install.stamp $(SOURCES)
	MVIT_KERNELS_NATIVE=1 $(BIN)/python setup.py -q build_ext --inplace
	touch $@

# Tools, and timm and transformers to hold our models and swaps against. These without their dependencies: timm wants torchvision, whose wheels
# want one exact torch build, and its transforms are all that timm imports of it.
$(VENV)/dev.stamp: $(VENV)/native.stamp
	$(PIP) --group dev
	$(PIP) --no-deps timm==1.0.31 torchvision==0.28.0 transformers==5.23.0
	$(PIP) tokenizers regex requests typer huggingface_hub pyyaml packaging filelock
	touch $@

$(VENV)/peers.stamp: $(VENV)/native.stamp
	$(PIP) --group peers
	touch $@

clean:
	rm -rf build out *.egg-info mvit_kernels/_cpu*.so mvit_kernels/_cuda*.so .pytest_cache .mypy_cache .ruff_cache \
		$(VENV)/native.stamp $(VENV)/dev.stamp $(VENV)/peers.stamp
