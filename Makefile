# make demo: segment the example scan.   make check: the quick checks.   make test: everything CI runs.
# make docs: the documentation as a site.   make pictures: its pictures of the report.   Each makes its own environment.
PYTHON ?= python3
OUT ?= demo-output
MYPY_WORKERS := auto
# Bytecode is made when a module is imported first: pip would compile all of torch.
PIP := -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt
SOURCES := $(shell find parotid_seg examples -type f -not -name '*.pyc')

# Workers of pytest-xdist have a core each (with two a core the tests took longer), and want 2 GB of memory.
# A worker that crashes ends the run: xdist would start another one, and then wait for tests that have ended already.
PARALLEL := -n logical --maxprocesses 8 --max-worker-restart 0 --dist loadscope --no-loadscope-reorder

# Without their bytecode, the programs that tests start would be compiled at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test tests-in-parallel lint docs pictures gpu clean

demo: .venv-demo/.ready
	.venv-demo/bin/parotid-seg infer examples/imagesTr --out $(OUT)
	@echo
	@echo "mask:     $(OUT)/$(CASE).nii.gz"
	@echo "volumes:  $(OUT)/summary.csv"
	@echo "picture:  $(OUT)/pictures/$(CASE).png"
	@echo "report:   $(OUT)/report.html"

# Format, types, import arrows and the quick tests, to be run after every change.
check: .venv/.ready lint
	.venv/bin/pytest -m 'not slow and not alone and not gpu' $(PARALLEL)

# Both environments are made at once, and checks of the code run beside the tests, some of which wait; mypy has no workers
# of its own then, as it gives up on those that need seconds to start. Tests whose figures other work on the machine would
# change come last, in one process.
test:
	$(MAKE) --no-print-directory -j2 .venv/.ready .venv-cuda-stub/.ready
	$(MAKE) --no-print-directory -j2 MYPY_WORKERS=0 lint tests-in-parallel
	.venv/bin/pytest -rs -m 'alone and not gpu' tests/bench

# At its end a run lists the tests that it had to skip, with the reasons.
tests-in-parallel: .venv/.ready .venv-cuda-stub/.ready
	.venv/bin/pytest -rs -m 'not alone and not gpu' $(PARALLEL)

lint: .venv/.ready
	.venv/bin/ruff format --check parotid_seg tests benchmarks docs
	.venv/bin/ruff check parotid_seg tests benchmarks docs
	.venv/bin/mypy --num-workers $(MYPY_WORKERS)
	.venv/bin/lint-imports --no-logo

# A warning, such as a link to a page that is not there, is an error.
docs: .venv-docs/.ready
	PATH="$(CURDIR)/.venv-docs/bin:$$PATH" NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

# Needs Chromium and Ghostscript.
pictures: .venv/.ready
	.venv/bin/python docs/pictures/make.py

# The runtime with onnxruntime-gpu instead of onnxruntime; the two share files and must not be installed together.
gpu: .venv-gpu/.ready

CASE := $(patsubst examples/imagesTr/%_0000.nii.gz,%,$(firstword $(wildcard examples/imagesTr/*.nii.gz)))

.venv-demo/.ready: pyproject.toml constraints.txt $(SOURCES)
	$(call new_environment,.venv-demo)
	.venv-demo/bin/python $(PIP) .
	@touch $@

.venv/.ready: pyproject.toml constraints.txt
	$(call new_environment,.venv)
	.venv/bin/python $(PIP) -e '.[train,export,dev]'
	@touch $@

.venv-docs/.ready: pyproject.toml constraints.txt
	$(call new_environment,.venv-docs)
	.venv-docs/bin/python $(PIP) -e '.[docs]'
	@touch $@

.venv-gpu/.ready: pyproject.toml constraints.txt
	$(call new_environment,.venv-gpu)
	.venv-gpu/bin/python $(PIP) '.[gpu]'
	.venv-gpu/bin/python -m pip uninstall -q -y onnxruntime onnxruntime-gpu
	.venv-gpu/bin/python $(PIP) --no-deps onnxruntime-gpu
	@touch $@

# The runtime with onnxruntime-gpu and PyCUDA, and headers of CUDA, for tests/cuda_stub. Where these packages do not exist,
# as on macOS, or cannot be built, these tests are skipped.
.venv-cuda-stub/.ready: pyproject.toml constraints.txt
	$(call new_environment,.venv-cuda-stub)
	.venv-cuda-stub/bin/python $(PIP) -e . onnx
	.venv-cuda-stub/bin/python -m pip uninstall -q -y onnxruntime onnxruntime-gpu
	.venv-cuda-stub/bin/python $(PIP) --no-deps onnxruntime-gpu nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-profiler-api && \
		{ .venv-cuda-stub/bin/python tests/cuda_stub/install_pycuda.py constraints.txt || \
		echo "PyCUDA cannot be built here: tests/cuda_stub/test_pycuda.py will be skipped"; } || \
		{ rm .venv-cuda-stub/bin/python; echo "no onnxruntime-gpu for this machine: tests/cuda_stub will be skipped"; }
	@touch $@

define new_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "parotid-seg needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@rm -rf $(1)
	$(PYTHON) -m venv $(1)
endef

clean:
	rm -rf .venv .venv-demo .venv-docs .venv-gpu .venv-cuda-stub site $(OUT)
