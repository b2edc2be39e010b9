# make demo, make test: everything else is set up on the way, in .venv.
#
#   build      .venv with pinned packages and this package, compiled, in it
#   demo       build, then `modernbert-fast demo`
#   test       lint, then the tests
#   lint       ruff, mypy, clang-format, the rules of tools/lint.py
#   lint-kernels   compiles every Triton kernel for every chip, without a GPU: none may spill (five to ten minutes)
#   lint-cuda  compiles the CUDA kernels for every GPU, without one, and reads registers and instructions (five minutes)
#   wheel      dist/*.whl with the CPU ops and the CUDA ops of every GPU; MODERNBERT_FAST_CUDA_ARCHS=80 for some
#   bench      the benchmark suite in small sizes
#   bench-rivals   installs ONNX Runtime and OpenVINO too, then the encoder against them all (takes an hour)
#   test-gpu, bench-gpu   all that must hold, and how fast it is, on the GPU of this machine, in under nine minutes each;
#              rehearsed on the CPU with DRY=1, or where there is no GPU. PYTHON_GPU=python3 takes that interpreter with
#              the packages it has, needs no network and installs nothing; also OUTPUT=folder, COMMIT=hash, ARGS=...
#   test-emulated  the op tests on the loops of instruction sets that this machine lacks, in plain C++
#   test-sanitize  the op tests under ASan with UBSan, TSan and glibc's heap checks (GCC; half an hour or more)
#   test-abi   runs the native tests of this build under another torch (a large download)
#   pretrain-tiny  makes modernbert_fast/tiny anew: corpus, tokenizer, pre-training (half an hour), evaluation; goes on
#              where it was stopped
#   clean      removes what was built, and .venv

export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PYTHON ?= python3
TORCH ?= 2.13.0
ABI_TORCH ?= 2.11.0
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --no-compile
# The second supported line of transformers, put first on PYTHONPATH by the tests that compare both.
OLD_TRANSFORMERS := transformers==5.17.0 huggingface_hub==1.33.0 httpx==0.28.1 httpcore==1.0.9 certifi==2026.10.18
OLD := $(VENV)/transformers-5.17
NATIVE := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -type f)
PACKAGE := $(shell find modernbert_fast kernels -name '*.py')
PATH_BEFORE := $(PATH)
export PATH := $(BIN):$(PATH)

.PHONY: build demo test lint lint-kernels lint-cuda wheel bench bench-rivals test-gpu bench-gpu test-abi test-emulated test-sanitize pretrain-tiny clean
.DELETE_ON_ERROR:

build: $(VENV)/.built

$(VENV)/.packages: requirements-dev.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch $(TORCH) and the development packages into $(VENV)"
	@$(PIP) torch==$(TORCH)
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.old-transformers: $(VENV)/.packages
	@echo "installing $(firstword $(OLD_TRANSFORMERS)) into $(OLD)"
	@rm -rf $(OLD) && $(PIP) --target $(OLD) --no-deps $(OLD_TRANSFORMERS)
	@PYTHONPATH=$(OLD) $(BIN)/python -c "import transformers; assert transformers.__version__ == '5.17.0'"
	@touch $@

$(VENV)/.built: $(VENV)/.packages $(VENV)/.old-transformers $(NATIVE)
	@echo "building modernbert_fast"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@$(BIN)/modernbert-fast info | sed -n '/^compiled parts/,/^$$/p'
	@touch $@

demo: build
	@$(BIN)/modernbert-fast demo

lint: build
	@$(BIN)/python tools/lint.py
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/simt -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

lint-kernels: build
	@env -u TRITON_INTERPRET $(BIN)/python benchmarks/run.py compile_report

build/cuda/.built: $(VENV)/.packages $(NATIVE)
	@echo "building $(@D) for every architecture"
	@mkdir -p $(@D) && cmake -S . -B $(@D)/cmake -G Ninja -DMODERNBERT_FAST_CPU=OFF -DMODERNBERT_FAST_CUDA=ON \
	  -DPython_EXECUTABLE=$(BIN)/python -DMODERNBERT_FAST_OUTPUT=$(CURDIR)/$(@D) > $(@D).log
	@began=$$(date +%s); cmake --build $(@D)/cmake --parallel $$(nproc) >> $(@D).log && \
	  echo "in $$(($$(date +%s) - began)) s"
	@touch $@

lint-cuda: build build/cuda/.built
	@$(BIN)/python tools/lint_cuda.py build/cuda/_ops_cuda.so

wheel: build
	@MODERNBERT_FAST_CUDA=1 MODERNBERT_FAST_CUDA_ARCHS=$${MODERNBERT_FAST_CUDA_ARCHS:-all} $(BIN)/python -m pip wheel -v \
	  --no-build-isolation --no-deps --wheel-dir dist . > build/wheel.log 2>&1 || { tail -50 build/wheel.log; exit 1; }
	@grep -oE "modernbert-fast: .*" build/wheel.log; ls -s -h dist/*.whl

test: lint
	@MALLOC_PERTURB_=128 OMP_WAIT_POLICY=passive timeout 2700 $(BIN)/python -m pytest -q -n 2 --dist loadfile

bench: build
	@$(BIN)/python -m pytest -q benchmarks
	@$(BIN)/python benchmarks/run.py models/encoder --workloads 1x64 --output build

$(VENV)/.rivals: $(VENV)/.packages benchmarks/requirements.txt
	@echo "installing the rivals into $(VENV)"
	@$(PIP) -r benchmarks/requirements.txt
	@touch $@

bench-rivals: build $(VENV)/.rivals
	@$(BIN)/python benchmarks/run.py models/encoder --dtype float32 --compile
	@$(BIN)/python benchmarks/run.py models/encoder --dtype bfloat16 --compile

ifdef PYTHON_GPU
GPU_PACKAGE := build/gpu/.built
GPU := PYTHONPATH=$(CURDIR)/build/gpu PATH=$(PATH_BEFORE) $(PYTHON_GPU)
else
GPU_PACKAGE := build
GPU := $(BIN)/python
endif
GPU_OPTIONS = $(if $(DRY),--dry) $(if $(OUTPUT),--output $(OUTPUT)) $(if $(COMMIT),--commit $(COMMIT)) $(ARGS)

test-gpu: $(GPU_PACKAGE)
	@$(GPU) benchmarks/run.py gpu/check $(GPU_OPTIONS)

bench-gpu: $(GPU_PACKAGE)
	@$(GPU) benchmarks/run.py gpu/bench $(GPU_OPTIONS)

# The package as setup.py lays it out, without pip; pure Python where setuptools is missing or too old for it.
build/gpu/.built: $(NATIVE) $(PACKAGE)
	@rm -rf $(@D) && mkdir -p $(@D)
	@PATH=$(PATH_BEFORE) $(PYTHON_GPU) setup.py --quiet build_py --build-lib $(@D) || { \
	echo "setup.py failed: the Python files alone, no compiled ops"; \
	cp -r modernbert_fast $(@D)/ && rm -f $(@D)/modernbert_fast/*.so $(@D)/modernbert_fast/_build_info.json && cp -r kernels $(@D)/modernbert_fast/; }
	@touch $@

$(VENV)-abi/.packages:
	@$(PYTHON) -m venv $(VENV)-abi
	@$(VENV)-abi/bin/python -m pip install -qq torch==$(ABI_TORCH) $$(grep -E '^(numpy|pytest|pytest-benchmark|safetensors)==' requirements-dev.txt)
	@touch $@

test-abi: build $(VENV)-abi/.packages
	@PYTHONPATH=$(CURDIR) PYTHONSAFEPATH= $(VENV)-abi/bin/python -m pytest -q tests/test_native.py

# Builds that answer questions lie in folders of their own, which PYTHONPATH puts before the package of .venv.
build/emulated/.built: OPTIONS := -DMODERNBERT_FAST_EMULATE=ON
build/address/.built: OPTIONS := -DMODERNBERT_FAST_EMULATE=ON -DMODERNBERT_FAST_SANITIZE=address,undefined
build/thread/.built: OPTIONS := -DMODERNBERT_FAST_EMULATE=ON -DMODERNBERT_FAST_SANITIZE=thread
build/emulated/.built build/address/.built build/thread/.built: $(VENV)/.packages $(NATIVE) $(PACKAGE)
	@echo "building $(@D)"
	@rm -rf $(@D)
	@CMAKE_ARGS="$(OPTIONS)" MODERNBERT_FAST_CUDA=0 $(PIP) --no-build-isolation --no-deps --target $(@D) .
	@test -f $(@D)/modernbert_fast/_ops_cpu.so
	@touch $@

# A sanitizer's report goes to file descriptor 2 and may be the last thing that happens: pytest must not hold it.
ASK := OMP_NUM_THREADS=1 timeout 1800 $(BIN)/python -m pytest -q --capture=sys -p no:cacheprovider
LOADED := $(BIN)/python -c "import sys; from modernbert_fast import library; sys.exit(library.isa() == 'none')"
EMULATED := amx avx512bf16 avx512
CPU_ROWS := tests/ops -k "cpu-cpu and not registration and not compiled"

test-emulated: build/emulated/.built
	@export PYTHONPATH=$(CURDIR)/build/emulated; $(LOADED) || exit; \
	for isa in $(EMULATED); do MODERNBERT_FAST_ISA=$$isa $(ASK) $(CPU_ROWS) || exit; done

test-sanitize: build build/address/.built build/thread/.built
	@export PYTHONPATH=$(CURDIR)/build/address ASAN_OPTIONS=detect_leaks=0; \
	export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"; \
	$(LOADED) || exit; \
	for isa in $(EMULATED) avx2 baseline; do MODERNBERT_FAST_ISA=$$isa $(ASK) $(CPU_ROWS) || exit; done; \
	$(ASK) tests/test_native.py
	@LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3 $(ASK) $(CPU_ROWS)
	@export PYTHONPATH=$(CURDIR)/build/thread LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)"; \
	$(LOADED) && $(ASK) $(CPU_ROWS)

TINY := build/tiny

$(TINY)/corpus/corpus.json: tools/tiny/corpus.py requirements-dev.txt | build
	@$(BIN)/python tools/tiny/corpus.py $(@D)

pretrain-tiny: $(TINY)/corpus/corpus.json | build
	@$(BIN)/modernbert-fast pretrain $(TINY)/run --data $(TINY)/corpus/train.jsonl --recipe tools/tiny/recipe.json \
	  --objective mlm+order --precision bf16 --device cpu --no-tensorboard --resume
	@$(BIN)/python tools/tiny/package.py $(TINY) modernbert_fast/tiny
	@$(BIN)/python tools/tiny/evaluate.py modernbert_fast/tiny $(TINY)/corpus modernbert_fast/tiny/figures.json

clean:
	rm -rf build dist *.egg-info $(VENV) $(VENV)-abi modernbert_fast/*.so modernbert_fast/_build_info.json
