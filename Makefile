# Every command makes the environment it needs in $(VENV) from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
RUNS ?= runs
STORE ?= model_store
CONFIG ?= training/configs/equivae-digits.yaml
# --resume: an interrupted training goes on.
AGAIN ?= --restart
TARGET ?= cpu
# Tests side by side, one thread each: one more than the cores, as some of them wait for processes and time limits. The
# exporter formats a traceback for each of thousands of nodes, which costs less without the columns.
TESTERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
bin := $(VENV)/bin
# Modules are compiled when they are first imported, as most of those installed never are; the bytecode is kept even where
# the environment forbids it, or every process would compile them anew.
export PYTHONDONTWRITEBYTECODE=
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.PHONY: serve test lint format train bench bench-peers lock audit clean image manifests

serve: $(VENV)/.serve  ## start the service on http://127.0.0.1:8000 with the shipped models
	@exec $(bin)/python -m service --host $(HOST) --port $(PORT) --model-store $(STORE)

test: $(VENV)/.test  ## the whole test suite
	OMP_NUM_THREADS=1 PYTHONNODEBUGRANGES=1 $(bin)/python -m pytest -q --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test  ## formatting, lint, types, import directions
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

audit: $(bin)/python  ## known vulnerabilities in the pinned dependencies; asks a database on the network
	$(bin)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(bin)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

format: $(VENV)/.test
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

# The run is named after CONFIG, a path without spaces. One that begins with another's weights (fit.initial) looks for
# that run as NAME-SEED, where the train command makes it by itself. Without 100 pages of 12 megapixels to read.
train: run := $(RUNS)/$(basename $(notdir $(CONFIG)))
train: $(VENV)/.train  ## a new version of CONFIG's model in model_store; of equivae-digits, from nothing, in about two minutes
	$(bin)/python -m training train $(CONFIG) --run $(run) $(AGAIN)
	EQUIPOISE_TRAINING_EVALUATE_PHOTOGRAPHS=0 $(bin)/python -m training evaluate $(run)
	$(bin)/python -m training export $(run) --to $(STORE)

bench: $(VENV)/.serve  ## this service beside plain FastAPI, each on one core, wrk on another
	$(bin)/python -m benchmarks.serving

bench-peers: $(VENV)/.serve  ## the same beside LitServe, BentoML, MLServer and Ray Serve, about half an hour
	$(bin)/python -m benchmarks.serving --peers --clients 1 8 32 64 --repeats 3 --json results/serving.json

image:  ## build TARGET (cpu, gpu, training) with buildah on a Debian machine as root, and run what was built
	docker/build.sh $(TARGET)

manifests:  ## render the Kubernetes objects that are committed; needs kubectl
	$(PYTHON) k8s/render.py

lock:  ## resolve constraints.txt anew, with CUDA's packages, which torch and ONNX Runtime share
	uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--all-extras --quiet --output-file constraints.txt

clean:
	rm -rf $(VENV) .bench build dist .mypy_cache .ruff_cache .pytest_cache

# Where ensurepip is missing (Debian without python3-venv) an environment without pip is left, which the next make would take.
# The pip that comes with Python 3.11 takes a minute longer to resolve the same packages.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }
	$(bin)/python -m pip install --quiet --disable-pip-version-check --no-compile pip==26.3

$(VENV)/.serve: $(bin)/python pyproject.toml constraints.txt
	$(install) '.[cpu]'
	@touch $@

$(VENV)/.train: $(bin)/python pyproject.toml constraints.txt
	$(install) '.[cpu,training]'
	@touch $(VENV)/.serve $@

$(VENV)/.test: $(bin)/python pyproject.toml constraints.txt
	$(install) '.[cpu,training,test]'
	@touch $(VENV)/.serve $(VENV)/.train $@
