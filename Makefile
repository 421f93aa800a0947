# Thin: each target is one command of README, run in .venv.
# Without make, e.g. on Windows, see README.

PYTHON ?= python3

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALLED := .venv/installed

.PHONY: book serve test notebooks clean

book: $(INSTALLED)
	$(BIN)/python -m mathlib.book build

serve: book
	$(BIN)/python -m mathlib.book serve

test: $(INSTALLED)
	$(BIN)/python -m pytest

notebooks: $(INSTALLED)
	$(BIN)/python -m mathlib.book execute

clean:
	rm -rf _build .venv

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; (3, 11) <= sys.version_info < (3, 14) or sys.exit(f"PYTHON must be Python 3.11, 3.12 or 3.13, was {v}: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	touch $@
