# The targets of this repository. `make` lists them. Every target uses the virtual environment .venv, which the first
# one creates from the exact versions of .ci/requirements.lock. Written for GNU make 3.81 (macOS) and later, and any
# POSIX shell.

VENV ?= .venv
BIN := $(VENV)/bin

# The first Python that the lock covers; name another with `make test PYTHON=python3.12`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1 && { echo $$p; exit; }; \
  done; echo python3)

UV ?= uv
PYTEST_ARGS ?= -q -n auto --maxprocesses 4 --dist loadfile
BENCH_ARGS ?=
LAB_ARGS ?=
BUDGET ?= 9m
OUT ?= runs/gpu/results
SCALE ?= paper
DEVICE ?= auto
CHAPTER ?= book/01_quickstart.ipynb
DEMO := runs/demo

# What the demo makes, by name. Only that is removed; what you have put beside it, or into its runs, stays.
DEMO_RUNS := $(addprefix $(DEMO)/,dm-seed0 iid-dm-seed0 iid-plus-seed0)
DEMO_FILES := $(addprefix $(DEMO)/,01_quickstart.ipynb 01_quickstart.html summary.txt scores.csv log.txt) \
  $(foreach run,$(DEMO_RUNS),$(addprefix $(run)/,config.yaml environment.json metrics.jsonl scores.json \
  synthetic.safetensors .lock checkpoints/[0-9]*.safetensors checkpoints/[0-9]*.json))
DEMO_FOLDERS := $(addsuffix /checkpoints,$(DEMO_RUNS)) $(DEMO_RUNS) $(DEMO)

# Kernels of this environment win over a kernel of the same name in the user's home.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-floor book print lab lint format sync install lock audit licences release bench gpu clean distclean

help: ## list these targets
	@echo "Usage: make TARGET"
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

demo: install ## distil the embedded images and compare with random real images (minutes on two cores)
	@rm -f $(DEMO_FILES); rmdir $(DEMO_FOLDERS) 2>/dev/null; for run in $(DEMO_RUNS); do \
	  if [ -e $$run ]; then echo "error: $$run holds files of your own; move them away" >&2; exit 1; fi; done
	@mkdir -p $(DEMO)
	@$(BIN)/python .ci/demo.py $(DEMO)

test: lint ## all checks except the long ones: ruff, mypy, unit tests, chapters, book
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: install ## the long forms: many kills, many bad inputs (half an hour), with their counts at the end
	$(BIN)/python -m pytest -q -m long -n auto --maxprocesses 4 --dist load

test-floor: ## the library's tests with the oldest versions that pyproject.toml allows, in .venv-floor (needs uv)
	@command -v $(UV) >/dev/null 2>&1 || { echo "error: '$(UV)' not found: install uv, or name it with UV=" >&2; exit 1; }
	@rm -rf .venv-floor; $(UV) venv --quiet --python 3.11 .venv-floor
	$(UV) pip install --quiet --python .venv-floor/bin/python --resolution lowest-direct -e '.[book,dev]'
	.venv-floor/bin/python -m pytest $(PYTEST_ARGS) -m "not book and not notebook and not slow"
	@echo "The kernels of a GPU, with the oldest Triton:"
	.venv-floor/bin/python -m pytest $(PYTEST_ARGS) -m "not long" tests/test_triton_norm.py tests/test_augment_ops.py

book: install ## build the HTML book into _build/html, warnings as errors
	$(BIN)/jb build book --config _config.yml --path-output . -W -n --keep-going
	@echo "The book: $(CURDIR)/_build/html/index.html"

print: install ## the whole book on one page, _build/singlehtml, and with Chromium installed as _build/book.pdf
	$(BIN)/jb build book --config _config.yml --path-output . --builder singlehtml -n --keep-going
	@chromium=$$(command -v chromium || command -v chromium-browser || command -v google-chrome) || { \
	  echo "One page: $(CURDIR)/_build/singlehtml/intro.html (install Chromium for a PDF)"; exit 0; }; \
	  "$$chromium" --headless --no-sandbox --virtual-time-budget=60000 --no-pdf-header-footer \
	  --print-to-pdf="$(CURDIR)/_build/book.pdf" "file://$(CURDIR)/_build/singlehtml/intro.html" 2>/dev/null && \
	  echo "The book: $(CURDIR)/_build/book.pdf"

lab: install ## open the first chapter in JupyterLab (CHAPTER=book/04_class_centralization.ipynb, LAB_ARGS="--no-browser")
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" $(CHAPTER) $(LAB_ARGS)

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## let ruff rewrite what it can, then sync the chapters
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	@$(MAKE) --no-print-directory sync

sync: install ## bring each chapter's .ipynb and .py together (the newer file wins)
	$(BIN)/jupytext --quiet --sync book/[0-9]*.ipynb

install: $(VENV)/.installed ## create .venv with the locked versions (every target does this when needed)

# The stamp holds a checksum of what decides the environment (the lock, and pyproject.toml up to its first [tool] table)
# and the folder of the clone. A new date on those files, as a git checkout leaves, or a changed linter setting therefore
# installs nothing. A clone that was moved or copied repairs its environment, whose scripts would otherwise still run the
# code at the old place. Where the Python that made .venv is gone (its link dangles), the environment is made from scratch.
PLACE := $(CURDIR) $(VENV)
ifneq ($(shell sed -n 2p '$(VENV)/.installed' 2>/dev/null),$(PLACE))
.PHONY: $(VENV)/.installed
else ifeq ($(wildcard $(BIN)/python),)
.PHONY: $(VENV)/.installed
endif
$(VENV)/.installed: .ci/requirements.lock pyproject.toml
	@key=`{ cat .ci/requirements.lock; sed '/^\[tool\./,$$d' pyproject.toml; } | cksum`; \
	log="$(VENV)/install.log"; place="$(PLACE)"; \
	had=`sed -n 1p $@ 2>/dev/null`; \
	if [ -x $(BIN)/python ] && [ "$$had" = "$$key" ] && [ "`sed -n 2p $@`" = "$$place" ]; then touch $@; exit 0; fi; \
	set -e; \
	quietly() { "$$@" >> "$$log" 2>&1 || { tail -n 20 "$$log" >&2; echo "error: this step failed; its log is $$log" >&2; exit 1; }; }; \
	if ! $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	  python="$(PYTHON)"; \
	  if ! $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then \
	    found=`$$python --version 2>&1` || found="not found"; \
	    echo "error: Python 3.11 to 3.14 is needed, but $$python is: $$found" >&2; \
	    echo "       Name one with PYTHON=, for example: make $(or $(firstword $(MAKECMDGOALS)),test) PYTHON=python3.12" >&2; \
	    echo "       Debian, Ubuntu: sudo apt install python3 python3-venv     macOS: brew install python@3.13" >&2; exit 1; fi; \
	  if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	    minor=`$$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'`; \
	    echo "error: $$python ($$minor) cannot make a virtual environment: python3-venv is missing" >&2; \
	    echo "       Debian, Ubuntu: sudo apt install python3-venv     (or python$$minor-venv, if $$python is not the default)" >&2; exit 1; fi; \
	  if [ -n "`ls -A $(VENV) 2>/dev/null`" ] && [ ! -e $(VENV)/pyvenv.cfg ]; then \
	    echo "error: $(VENV) is not a virtual environment; name another folder with VENV=" >&2; exit 1; fi; \
	  echo "Creating $(VENV) with $$python"; \
	  $$python -m venv --clear $(VENV); \
	  had=; \
	fi; \
	: > "$$log"; \
	$(BIN)/python .ci/relocate.py $(VENV); \
	if [ "$$had" != "$$key" ]; then \
	  echo "Installing the locked packages into $(VENV): once, a few minutes, on Linux 6 GB (log: $$log)"; \
	  quietly $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r .ci/requirements.lock; \
	fi; \
	quietly $(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	{ echo "$$key"; echo "$$place"; } > $@

lock: ## compile .ci/requirements.lock again from pyproject.toml (needs uv; UPGRADE=1 moves to the newest versions)
	@command -v $(UV) >/dev/null 2>&1 || { \
	  echo "error: '$(UV)' not found: install uv (for example: pipx install uv), or name it with UV=" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --extra book --extra dev --universal --generate-hashes --python-version 3.11 \
	  --no-header $(if $(UPGRADE),--upgrade) --output-file .ci/requirements.lock --quiet

audit: ## look the locked packages up in PyPI's list of known vulnerabilities (needs uv and the network)
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes --requirement .ci/requirements.lock

licences: install ## write the licences that the locked packages declare to .ci/licences.csv
	$(BIN)/python .ci/licences.py

release: install ## check, build and test a release (make release VERSION=0.2.0); tagging and uploading stay with you
	@$(BIN)/python .ci/release.py "$(VERSION)"

bench: install ## seconds per iteration: ours against the per-class loop (BENCH_ARGS=--quick for a short one)
	$(BIN)/iid bench $(BENCH_ARGS)

# On a rented machine nothing is installed: with .venv that one, otherwise the machine's own Python, which has torch.
gpu: ## measure what is missing on a rented GPU until BUDGET=9m ends, into OUT= (SCALE=, DEVICE=; see CONTRIBUTING.md)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) .ci/gpu.py --budget $(BUDGET) --out "$(OUT)" --scale $(SCALE) \
	  --device $(DEVICE)

clean: ## remove what the targets made, except .venv and your own runs
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(DEMO_FILES); rmdir $(DEMO_FOLDERS) 2>/dev/null || true
	find iidlib tests book \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv and .venv-floor as well
	@if [ -e $(VENV) ] && [ ! -e $(VENV)/pyvenv.cfg ]; then \
	  echo "error: $(VENV) is not a virtual environment (no pyvenv.cfg) and was not removed" >&2; exit 1; fi
	rm -rf $(VENV) .venv-floor
