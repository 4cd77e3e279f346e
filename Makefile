# make demo   upscale a photograph (WEIGHTS=checkpoint, OUT=folder)    make lint    ruff, mypy, clang-format
# make test   run the tests (PYTEST_ARGS=...)                          make format  apply ruff and clang-format
# make setup  only install, into .venv                                 make clean   remove what make created
# make sanitize   the kernels' tests under ASan and UBSan           make oldest-triton   compile by the oldest Triton
# make bench-cpu  time fastsr against its peers (BENCH_ARGS=...)      make docs-performance  results into docs
# make gpu-test   the tests that need a GPU      make gpu-check  build, test and measure on a GPU (OUT=folder, STEPS=...)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(shell find csrc -type f)
SIMULATED := $(wildcard tests/cuda_sim/*.h tests/cuda_sim/*.cpp)

.PHONY: setup demo test sanitize oldest-triton bench-cpu gpu-test gpu-check docs-performance lint format clean

setup: $(VENV)/.built

$(VENV)/.packages: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fastsr: Python 3.10 or newer is needed; run make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "fastsr: installing the packages of constraints.txt into $(VENV)"
	@$(PIP) torch setuptools wheel ninja pybind11 numpy
	@FASTSR_BUILD=0 $(PIP) --no-build-isolation -e '.[demo,test,lint]'
	@touch $@

$(VENV)/.built: $(VENV)/.packages setup.py $(NATIVE)
	@$(PIP) --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'from fastsr._info import summary; print(summary())'
	@touch $@

demo: setup
	@$(BIN)/python -m fastsr demo --output $(OUT) $(if $(WEIGHTS),--weights $(WEIGHTS))

# Each file of tests in one of two processes, as their compilers and simulators keep one processor busy.
test: setup
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# The compiled operators' tests once under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of their own.
SANITIZED := build/sanitize
KERNEL_TESTS = $(shell grep -l kernel_checks tests/test_*.py) \
  $(addprefix tests/test_,bad_input.py bare_shapes.py freeze.py half.py)

sanitize: setup
	@FASTSR_BUILD=1 FASTSR_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib >/dev/null
	@LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/lib $(BIN)/pytest -p no:cacheprovider -q \
	  -k 'not compile and not opcheck' $(PYTEST_ARGS) $(KERNEL_TESTS)

# The kernels' language was narrower in the oldest Triton that is supported: every kernel is compiled by it once.
OLDEST_TRITON := build/triton-3.6.0

oldest-triton: setup
	@test -d $(OLDEST_TRITON)/triton || $(subst --constraint constraints.txt,,$(PIP)) --no-deps --target $(OLDEST_TRITON) triton==3.6.0
	@PYTHONPATH=$(OLDEST_TRITON):. $(BIN)/python tests/triton_kernels/cubins.py $(OLDEST_TRITON)/cubins.json 90
	@echo "fastsr: Triton 3.6.0 compiles every kernel"

bench-cpu: setup
	@$(PIP) pyyaml matplotlib jinja2 onnx onnxscript onnxruntime openvino
	$(BIN)/python -m fastsr bench --device cpu --memory --peer-limit 300 $(BENCH_ARGS)

# A GPU machine is used as it is: nothing is installed there.
gpu-test:
	@PYTHONPATH=. $(PYTHON) -m pytest tests/gpu $(PYTEST_ARGS)

gpu-check:
	@$(PYTHON) -m benchmarks.gpu_check --out $(if $(filter file,$(origin OUT)),gpu-check,$(OUT)) --steps "$(STEPS)"

docs-performance: setup
	$(BIN)/python -m fastsr.bench.performance benchmarks/results docs/performance.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(SIMULATED)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE) $(SIMULATED)

clean:
	rm -rf $(VENV) build dist demo *.egg-info fastsr/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
