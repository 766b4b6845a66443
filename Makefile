# make quickstart    train a small T6 on real text, evaluate it, sample from it
# make test          lint, and all tests on the CPU
# make test-quick    a selection of the tests, for the inner loop
# make test-gpu      the tests that need an NVIDIA GPU
# make test-torch    the tests that compare with PyTorch
# make test-latest   the CPU tests on the newest JAX, Flax, Optax, Orbax, Grain and everything else
# make test-oldest   the CPU tests on the oldest versions that pyproject.toml allows
# make mutants       puts faults into a copy of the code, and names those that no test notices; ROOM=attention: of one room
# make lint          ruff, pyright
# make docs          the site, in build/site; a warning is an error
# make setup         the environment, .venv, which the others set up by themselves

PYTHON := .venv/bin/python
RUN := runs/quickstart
PROMPT := def __init__(self
SETUP := pyproject.toml requirements.txt requirements-test.txt requirements-torch.txt scripts/setup.sh
# one process more than cores: many tests wait for processes that they start
PARALLEL := -n $(shell expr $$(nproc) + 1) --dist loadfile --no-loadscope-reorder
# without the files that compile much: models, kernels under an interpreter, training, programs
QUICK := tests/config tests/data tests/ops tests/generation/test_detokenizer.py tests/evaluation/test_p*.py tests/interop/test_reference.py \
	tests/attention/test_bad_input.py tests/attention/test_counts.py tests/attention/test_tpa.py \
	tests/pallas_kernels/decode/test_cache_layout.py \
	$(filter-out tests/test_readme.py,$(wildcard tests/test_*.py))

# each of the many processes that the tests start would compile JAX's sources again: 8 s
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart test test-quick test-gpu test-torch test-latest test-oldest mutants lint docs clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

setup: .venv/installed

.venv/installed: $(SETUP)
	@bash scripts/setup.sh .venv
	@touch $@

.venv-torch/installed: $(SETUP)
	@bash scripts/setup.sh .venv-torch tested train,eval,interop,torch,test
	@touch $@

# always anew: what is newest changes
.PHONY: .venv-latest/installed
.venv-latest/installed:
	@bash scripts/setup.sh .venv-latest newest

.venv-oldest/installed: $(SETUP)
	@bash scripts/setup.sh .venv-oldest oldest train,eval,interop,test
	@touch $@

quickstart: .venv/installed
	$(PYTHON) train.py --config=configs/quickstart.py --workdir=$(RUN)
	$(PYTHON) eval.py --ckpt=$(RUN)
	$(PYTHON) generate.py --ckpt=$(RUN) --prompt="$(PROMPT)"

test: lint docs
	JAX_PLATFORMS=cpu $(PYTHON) -m pytest $(PARALLEL)

test-quick: .venv/installed
	JAX_PLATFORMS=cpu $(PYTHON) -m pytest $(PARALLEL) -m "not slow and not exhaustive" $(QUICK)

test-gpu: .venv/installed
	$(PYTHON) -m pytest tests/gpu

test-torch: .venv-torch/installed
	JAX_PLATFORMS=cpu .venv-torch/bin/python -m pytest -m torch

test-latest: .venv-latest/installed
	JAX_PLATFORMS=cpu .venv-latest/bin/python -m pytest $(PARALLEL)

test-oldest: .venv-oldest/installed
	JAX_PLATFORMS=cpu .venv-oldest/bin/python -m pytest $(PARALLEL)

mutants: .venv/installed
	$(PYTHON) -m tests.mutants $(if $(ROOM),--room=$(ROOM))

lint: .venv/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --project pyproject.toml --pythonpath $(PYTHON)

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

clean:
	rm -rf .venv .venv-torch .venv-latest .venv-oldest runs build
