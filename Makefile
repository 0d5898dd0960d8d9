# Two commands do all the set-up: `make demo` and `make test`. PYTHON chooses the interpreter (3.11 or later), JOBS how many
# tests run at once; each wants a core and two gigabytes.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
COMPAT = .venv-compat
JOBS ?= 2

HUB_ID = HuggingFaceTB/SmolLM2-135M-Instruct
BUNDLE = demo/smollm2
QUESTION = What is the capital of France, and what is it known for?

.PHONY: demo test test-arm fast check models bench frontier pages clean
.DELETE_ON_ERROR:

# Convert a real model for both runtimes, ask each the same question, measure them side by side. No torch.
demo: $(VENV)/.installed
	rm -rf $(BUNDLE)
	source=$$($(BIN)/python -m edgellm.benchmarks.models --source smollm2 --hub $(HUB_ID)) && \
	$(BIN)/edgellm convert "$$source" -o $(BUNDLE) --target both --preset fast
	$(BIN)/edgellm run $(BUNDLE) "$(QUESTION)" --runtime onnx --max-tokens 128 --temperature 0
	$(BIN)/edgellm run $(BUNDLE) "$(QUESTION)" --runtime tflite --max-tokens 128 --temperature 0
	$(BIN)/edgellm bench $(BUNDLE) --trials 2 --json $(BUNDLE).json

# The whole suite, slow tests and real models included. Where tests run side by side each has one thread for its algebra: with
# more they wait for each other; and files go in the order that conftest.py gives them, the long ones first.
test: $(VENV)/.tested $(COMPAT)/.installed models
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		--durations 25 -m "not alone and not arm"
	$(BIN)/python -m pytest -m alone

# The device side on emulated ARM boards, of Debian's and the index's own aarch64 packages. It wants Debian's qemu-user-static and
# mmdebstrap, and skips without them; what boards are made of is kept in the user's cache.
test-arm: $(VENV)/.tested $(COMPAT)/.installed
	$(BIN)/python -m edgellm.benchmarks.models smollm2
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 10 -m arm tests/arm

# What takes seconds: for the loop of editing and trying.
fast: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow"

check: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_house.py -m "not slow"

# The real models that tests and benchmarks use, about 850 MB, kept in the user's cache.
models: $(VENV)/.installed
	$(BIN)/python -m edgellm.benchmarks.models smollm2 qwen2.5 gemma3

# Each real model at INT4, measured in both runtimes on this machine.
bench: models
	for name in smollm2 qwen2.5 gemma3; do \
		rm -rf demo/$$name-both && \
			$(BIN)/edgellm convert "$$($(BIN)/python -m edgellm.benchmarks.models --source $$name)" -o demo/$$name-both --target both || exit 1; \
		$(BIN)/edgellm bench demo/$$name-both --json demo/$$name-both.json || exit 1; \
	done

# Quality against speed beside llama.cpp, of docs/benchmarks.md. An hour on a quiet machine.
frontier: $(VENV)/.tested models
	.ci/peers $(BIN)/python
	$(BIN)/python -m edgellm.benchmarks.frontier --json docs/benchmarks.frontier.json
	$(BIN)/python -m edgellm.benchmarks.page

# The tables and the plot of docs/benchmarks.md, drawn from the runs beside it.
pages: $(VENV)/.tested
	$(BIN)/python -m edgellm.benchmarks.page

clean:
	rm -rf $(VENV) $(COMPAT) demo build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgellm needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[onnx,tflite,convert]'
	touch $@

$(VENV)/.tested: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

# tflite-runtime wants an older Python and numpy than the rest: what tests it runs there. Without a Python 3.11 it is skipped.
$(COMPAT)/.installed: setup.cfg pyproject.toml
	python=$$(for each in $(PYTHON) python3.11; do \
		"$$each" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$each" && break; \
	done); \
	if [ -n "$$python" ]; then \
		"$$python" -m venv $(COMPAT) && $(COMPAT)/bin/python -m pip install --quiet --editable '.[tflite-runtime]' pytest && \
			touch $@; \
	else \
		echo "no Python 3.11 with venv: the tests of tflite-runtime will be skipped"; \
	fi
