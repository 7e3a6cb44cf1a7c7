# Everything runs in a virtual environment of its own: VENV. TORCH goes in first, as it comes in many builds.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
FUZZ_CASES ?= 20000
SOAK ?= 600

BIN := $(VENV)/bin
CPP := $(shell find csrc -type f)
DRIVERS := $(wildcard tests/native/*.cpp)
PYTEST := $(BIN)/pytest -n 2 --dist worksteal
QUICK := "not slow and not wide"
# the extension as the sanitizers want it, in a folder of its own, and the Python that can load it
SANITIZED := build/sanitize
RUN_SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(CURDIR)/$(SANITIZED)/lib
# named after the choice, so that another one installs again
TORCH_STAMP := $(VENV)/.torch-$(shell echo '$(TORCH)' | cksum | cut -d ' ' -f 1)

.PHONY: demo serve-demo test test-all test-wide test-plain test-stacks sanitize soak fuzz kernels lint format bench clean help
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: $(VENV)/.demo  ## classify real sentences with the bundled checkpoint
	$(BIN)/pfengine demo

serve-demo: $(VENV)/.dev  ## start the server on the bundled checkpoint, ask it through three clients, stop it
	$(BIN)/python tools/serve_demo.py

test: $(VENV)/.dev  ## all but long tests and options beyond the pairwise cover; 10 minutes on two slow cores
	$(PYTEST) -m $(QUICK)

test-all: FUZZ_CASES := 3000
test-all: $(VENV)/.dev  ## long tests too, 3,000 cases of each fuzz, some of the kernels, test-plain, sanitize; 30 minutes
	PFENGINE_FUZZ_CASES=$(FUZZ_CASES) $(PYTEST) -m "not wide"
	$(MAKE) kernels KERNELS=--quick
	$(MAKE) test-plain sanitize

.PHONY: test-ui
test-ui: ext $(VENV)/.dev  ## the page at /ui in headless Chromium; needs chromium and chromedriver (apt-get install chromium chromium-driver)
	$(BIN)/pip install -q 'selenium>=4.20'
	$(BIN)/pytest tests/serving/test_ui.py tests/serving/test_ui_page.py

.PHONY: ext wheel
ext: | $(VENV)/.demo  ## build the extension; after a change in csrc only what has changed, in seconds
	$(BIN)/python setup.py -q build_ext --inplace

# what runs the extension
demo serve-demo test test-all test-wide test-plain fuzz soak bench: ext

.PHONY: ptx
ptx:  ## what nvcc makes of csrc/cuda/condition.cu, for drivers from CUDA 12.4 on
	nvcc -ptx -arch=compute_80 -o build/condition.ptx csrc/cuda/condition.cu
	( echo '// What nvcc makes of csrc/cuda/condition.cu; `make ptx` writes it.'; \
		sed -e '/^\/\//d' -e 's/^\.version .*/.version 8.4/' build/condition.ptx | cat -s ) > pfengine/ops/condition.ptx

wheel: $(VENV)/.dev  ## a manylinux wheel in dist/ with the kernels of every instruction set
	rm -rf build/lib* build/wheel
	PFENGINE_EXT=$(or $(PFENGINE_EXT),cpu) $(BIN)/python -m build --wheel --no-isolation --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

STACKS := $(VENV)-stacks/.ready $(VENV)-mlserver/.ready
test-stacks: $(STACKS)  ## the real clients and servers of docs/serving, in environments of their own; about 10 minutes
	$(VENV)-stacks/bin/python setup.py -q build_ext --inplace
	@# a process each: kserve's messages and tritonclient's cannot be in one
	set -e; for file in tests/stacks/test_*.py; do case $$file in \
		*mlserver*) $(VENV)-mlserver/bin/pytest $$file;; *) $(VENV)-stacks/bin/pytest $$file;; esac; done

kernels: $(VENV)/.dev  ## compile every GPU kernel ahead of time: registers, spills, shared memory; KERNELS=--quick: 40%
	$(BIN)/python -m pfengine.kernels.report $(KERNELS)

test-wide: $(VENV)/.dev  ## options beyond the pairwise cover, some 5,000 tests; in parts: TESTS=tests/heads
	$(PYTEST) -m wide $(TESTS)

test-plain: $(VENV)/.dev  ## the engine's tests as on a processor without vector instructions
	PFENGINE_ISA=plain $(PYTEST) -m $(QUICK) tests/test_engine.py tests/test_encoder.py tests/test_any_architecture.py \
		tests/test_api.py tests/test_pipeline_parity.py

sanitize: $(VENV)/.dev  ## the extension under AddressSanitizer and UBSan, its threads under ThreadSanitizer; about 5 minutes
	rm -rf $(SANITIZED)
	PFENGINE_EXT=cpu PFENGINE_SANITIZE=address,undefined $(BIN)/python setup.py -q build \
		--build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	$(RUN_SANITIZED) $(BIN)/python -P -c 'from pfengine import _C; assert "$(SANITIZED)" in _C.__file__, _C.__file__'
	# without forks beside calls: gcc's AddressSanitizer has locks of its own, which a fork may find taken
	$(RUN_SANITIZED) $(PYTEST) -m $(QUICK) tests/test_extension.py tests/test_native_checks.py \
		tests/test_native_queries.py tests/ops tests/test_flight.py tests/test_token_flight.py tests/test_fork.py \
		--deselect tests/test_fork.py::test_a_fork_beside_calls_of_other_threads
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread -march=native -DPFENGINE_ISA=plain -Icsrc -pthread \
		$(DRIVERS) csrc/cpu/*.cpp -o $(SANITIZED)/team
	TSAN_OPTIONS=die_after_fork=0 $(SANITIZED)/team

soak: $(VENV)/.dev  ## the server under 1.5 times its capacity for SOAK seconds (600), from clients that hang up
	$(BIN)/python -m bench.soak --seconds $(SOAK)

fuzz: $(VENV)/.dev  ## damaged checkpoints, damaged data files and rows that are no rows, 20,000 of each; about 3 minutes
	PFENGINE_FUZZ_CASES=$(FUZZ_CASES) $(PYTEST) -m fuzz

lint: $(VENV)/.dev  ## ruff, mypy, clang-format, file lengths
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(DRIVERS)
	$(BIN)/python tools/check_lengths.py

format: $(VENV)/.dev  ## let ruff and clang-format rewrite the files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP) $(DRIVERS)

bench: $(VENV)/.bench  ## latency and throughput beside the peers, under 4 minutes; every suite: pytest bench --full
	$(BIN)/pytest bench --benchmark-only

clean:  ## remove what was built, and the virtual environment
	rm -rf $(VENV) $(dir $(STACKS)) build dist pfengine.egg-info pfengine/_C*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find pfengine/ kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12
	@echo 'PYTHON=$(PYTHON) VENV=$(VENV) TORCH="$(TORCH)" can be set; PFENGINE_EXT too, see setup.py'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("pfengine needs Python 3.11 or newer; say PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(TORCH_STAMP): | $(BIN)/python
	$(BIN)/pip install $(TORCH)
	rm -f $(VENV)/.torch-*
	touch $@

# Editable installs of the same package, without the extension: `ext` builds it with CMake, ninja and pybind11 of VENV,
# which are still there for the next build, as those of pip's own build environment are not.
# The dev and bench extras hold all a demo needs.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.bench: $(TORCH_STAMP) pyproject.toml
$(VENV)/.demo:
	PFENGINE_EXT=0 $(BIN)/pip install -e '.[build]'
	touch $@
$(VENV)/.dev:
	PFENGINE_EXT=0 $(BIN)/pip install -e '.[dev]'
	touch $@ $(VENV)/.demo
$(VENV)/.bench:
	PFENGINE_EXT=0 $(BIN)/pip install -e '.[dev,bench]'
	touch $@ $(VENV)/.dev $(VENV)/.demo
# The extension is in the source tree: one build serves all of these.
$(STACKS): $(VENV)-%/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/pip install $(TORCH)
	PFENGINE_EXT=0 $(VENV)-$*/bin/pip install -e '.[test-$*]'
	touch $@
