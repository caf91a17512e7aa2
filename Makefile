# make demo        the main job on models/demo, then accuracies on 2,000 test images
# make test        pytest, side by side (all tests; those of models/ need PyTorch, those of reports
#                  in a browser need Chromium: apt-get install chromium)
# make lint        ruff, rules and format; make format mends what it can
# make typecheck   mypy, strict
# make bench-accuracy, make bench-speed   the tables of tests/benchmarks/; BENCH passes options
# make oldest      the demo, with a report, with the oldest dependencies that pyproject.toml allows
#
# Every target makes its own virtual environment on first use and is fast afterwards.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
# The version that the tests of models/ are known to pass with; TORCH=torch takes the newest.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
DEMO := models/demo
OUT ?= build/demo
# Extras that the demo is run with, and options for its fit.
EXTRAS ?=
FIT ?=
ON_TEST := $(DEMO)/test.npz --preprocess fashion-mnist --labels $(DEMO)/test.npz

.PHONY: demo test lint format typecheck oldest gpu bench-accuracy bench-speed clean

demo: $(VENV)/.installed
	@mkdir -p $(OUT)
	$(BIN)/fskd-onnx fit $(DEMO)/teacher.onnx $(DEMO)/student.onnx $(DEMO)/samples \
	  --preprocess fashion-mnist -o $(OUT)/fused.onnx $(FIT) | tee $(OUT)/fit.txt
	$(BIN)/fskd-onnx compare $(DEMO)/teacher.onnx $(DEMO)/student.onnx $(ON_TEST) > $(OUT)/untouched.txt
	$(BIN)/fskd-onnx compare $(DEMO)/teacher.onnx $(OUT)/fused.onnx $(ON_TEST) > $(OUT)/fused.txt
	@echo
	@sed -n 's/^samples  */test images        /p' $(OUT)/fused.txt
	@sed -n 's/^teacher accuracy  */teacher            /p' $(OUT)/fused.txt
	@sed -n 's/^student accuracy  */untouched student  /p' $(OUT)/untouched.txt
	@sed -n 's/^student accuracy  */fused student      /p' $(OUT)/fused.txt
	@sed -n 's/^time  */time of the fit    /p' $(OUT)/fit.txt

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# passes/ is imported as fskd_onnx.passes. mypy does not follow the hook by which an editable
# install does that, so it is shown the packages as they are installed.
typecheck: $(VENV)/.installed-dev
	@rm -rf build/typed && mkdir -p build/typed/fskd_onnx
	@ln -s $(filter-out %/__pycache__,$(wildcard $(CURDIR)/fskd_onnx/*)) $(CURDIR)/passes build/typed/fskd_onnx/
	@ln -s $(CURDIR)/models $(CURDIR)/tests $(CURDIR)/pyproject.toml build/typed/
	cd build/typed && $(abspath $(BIN))/mypy --cache-dir $(CURDIR)/.mypy_cache fskd_onnx models tests

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m tests.gpu

# Hours, both; trained teachers stay in the cache, accuracies in docs/accuracy.json.
bench-accuracy: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.accuracy $(BENCH)

bench-speed: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.speed $(BENCH)

# The bounds in pyproject.toml are the one place where the oldest versions stand.
oldest:
	@mkdir -p build
	@$(PYTHON) -c 'import tomllib; \
	  project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  bounds = project["dependencies"] + project["optional-dependencies"]["report"]; \
	  print("\n".join(bounds).replace(">=", "=="))' > build/oldest.txt
	PIP_CONSTRAINT=$(CURDIR)/build/oldest.txt $(MAKE) --no-print-directory demo VENV=build/oldest OUT=build/oldest-demo \
	  EXTRAS=[report] FIT="--report build/oldest-demo/fit.html"

clean:
	rm -rf build

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".$(EXTRAS)"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev,torch,report]"
	@touch $@
