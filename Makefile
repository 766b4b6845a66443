# make quickstart: train a small T6 on real text, evaluate it, sample from it. make test: lint and tests.
# Both set themselves up in .venv first, once.

PYTHON := .venv/bin/python
RUN := runs/quickstart
PROMPT := def __init__(self

.PHONY: help setup quickstart test test-gpu lint clean

help:
	@sed -n '1,2s/^# //p' Makefile

setup: .venv/installed

.venv/installed: requirements.txt requirements-test.txt scripts/setup.sh
	@bash scripts/setup.sh .venv
	@touch $@

quickstart: .venv/installed
	$(PYTHON) train.py --config=configs/quickstart.py --workdir=$(RUN)
	$(PYTHON) eval.py --ckpt=$(RUN)
	$(PYTHON) generate.py --ckpt=$(RUN) --prompt="$(PROMPT)"

test: lint
	JAX_PLATFORMS=cpu $(PYTHON) -m pytest -n auto

test-gpu: .venv/installed
	$(PYTHON) -m pytest tests/gpu

lint: .venv/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

clean:
	rm -rf .venv runs
