# make quickstart: train a small T6 on real text, evaluate it, sample from it. make test: lint and tests.
# Both set themselves up in .venv first, once. make test-torch: the tests that compare with PyTorch, in a .venv-torch of their own.

PYTHON := .venv/bin/python
RUN := runs/quickstart
PROMPT := def __init__(self

.PHONY: help setup quickstart test test-gpu test-torch lint docs clean

help:
	@sed -n '1,2s/^# //p' Makefile

setup: .venv/installed

.venv/installed: requirements.txt requirements-test.txt pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh .venv
	@touch $@

.venv-torch/installed: requirements.txt requirements-test.txt requirements-torch.txt pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh .venv-torch requirements-torch.txt
	@touch $@

quickstart: .venv/installed
	$(PYTHON) train.py --config=configs/quickstart.py --workdir=$(RUN)
	$(PYTHON) eval.py --ckpt=$(RUN)
	$(PYTHON) generate.py --ckpt=$(RUN) --prompt="$(PROMPT)"

test: lint docs
	JAX_PLATFORMS=cpu $(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-gpu: .venv/installed
	$(PYTHON) -m pytest tests/gpu

test-torch: .venv-torch/installed
	JAX_PLATFORMS=cpu .venv-torch/bin/python -m pytest -m torch

lint: .venv/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# the site, into build/site; a warning is an error
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

clean:
	rm -rf .venv .venv-torch runs
