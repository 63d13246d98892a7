# `make demo` and `make test` set up all they need: system packages, virtual environments.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests run on a newer Python, too, where there is one (pyenv's versions are looked through).
NEWER := $(shell for python in python3.13 $$HOME/.pyenv/versions/3.13*/bin/python3.13; do \
	command -v $$python >/dev/null && $$python -c pass 2>/dev/null && echo $$python && break; done)
# Each tool, and the package that has it; Ubuntu's perf is in linux-tools-generic. The demo needs few.
TOOLS := gdb:gdb lldb:lldb perf:linux-perf objdump:binutils
TEST_TOOLS := llvm-readelf:llvm llc-19:llvm-19 gcc:gcc gcc:libc6-dev \
	chromium:chromium unshare:util-linux setpriv:util-linux mount:mount

.PHONY: demo test lint benchmark clean tools test-tools

demo: $(VENV)/installed
	$(BIN)/jitlisten doctor
	PYTHON=$(BIN)/python sh examples/demo.sh

test: test-tools lint $(if $(NEWER),.venv-newer/installed)
	$(BIN)/python -m pytest -n 2
ifneq ($(NEWER),)
	.venv-newer/bin/python -m pytest -n 2
endif

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

benchmark: $(VENV)/installed
	$(BIN)/python benchmarks/attach.py
	$(BIN)/python benchmarks/outside.py
	$(BIN)/python benchmarks/safepoints.py
	$(BIN)/python benchmarks/perf_ready.py
	$(BIN)/python benchmarks/codeimages.py

$(VENV)/installed: pyproject.toml | tools
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

.venv-newer/installed: pyproject.toml | tools
	$(NEWER) -m venv .venv-newer
	.venv-newer/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

tools:
	@PYTHON='$(PYTHON)' sh tests/install-tools.sh $(TOOLS)

test-tools:
	@PYTHON='$(PYTHON)' sh tests/install-tools.sh $(TOOLS) $(TEST_TOOLS)

clean:
	rm -rf .venv .venv-newer .mypy_cache .ruff_cache .pytest_cache .hypothesis
