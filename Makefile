# Everything a newcomer needs: `make demo` and `make test`. Both set up their environment first, and are quick when it is there.

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
ADDRESS ?= http://127.0.0.1:8265
RUN ?=

python := $(VENV)/bin/python

# A stamp a set of extras, newer than the files that decide what is installed. Each set holds the one before it.
run_extras := ray
test_extras := ray,test
dev_extras := ray,test,dev
run_stamp := $(VENV)/.installed-run
test_stamp := $(VENV)/.installed-test
dev_stamp := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test kills lint docs submit bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  VENV=$(VENV)  the virtual environment; made where it is missing"
	@echo "  PYTHON=$(PYTHON)  the interpreter that makes it, 3.10 or newer"
	@echo "  ARGS=\"...\"  passed on to demo, test, kills, submit and bench, as in: make test ARGS=\"-k schedules\""
	@echo "  WORKERS=$(WORKERS)  processes that share the test files out; each may start a Ray of its own"
	@echo "  ADDRESS=$(ADDRESS)  where submit finds the cluster's job server"

setup: $(dev_stamp) ## Install everything: the package with its Ray, test and development extras

demo: $(run_stamp) ## Tune, guide and measure the embedded model, then write the report
	$(python) -m pipelines demo $(ARGS)

pytest := $(python) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --timeout 300 --durations 20

test: $(test_stamp) ## Run the tests, without those marked kills or slow
	$(pytest) -m "not kills and not slow" $(ARGS)

kills: $(test_stamp) ## Run the tests in which workers, drivers, jobs and disks fail for real, and the installed package
	$(pytest) -m "kills and not slow" $(ARGS)

lint: $(dev_stamp) ## Check style, format and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m pyright --pythonpath $(python)

docs: $(dev_stamp) ## Build the documentation into build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict
	@echo "Documentation: build/site/index.html"

submit: $(run_stamp) ## Run a command on a cluster: make submit RUN=name ARGS="evaluate --preset demo"
	@test -n "$(RUN)" || { echo 'make: name the run, which is what a resubmission resumes: make submit RUN=name ARGS="..."' >&2; exit 2; }
	@test -n "$(ARGS)" || { echo 'make: give the command: make submit RUN=$(RUN) ARGS="evaluate --preset demo"' >&2; exit 2; }
	$(VENV)/bin/ray job submit --address "$(ADDRESS)" --working-dir . -- python -m pipelines $(ARGS) run.name=$(RUN)

bench: $(run_stamp) ## Measure speed
	$(python) -m benchmarks $(ARGS)

clean: ## Remove caches and build products; the environment and the runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path './.?*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(python):
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no '$(PYTHON)' here; name a Python of 3.10 or newer: PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: '$(PYTHON)' is $$($(PYTHON) --version 2>&1), and aig needs 3.10 or newer; name one: PYTHON=python3.12" >&2; exit 1; }
	@rm -f $(VENV)/.installed-*
	$(PYTHON) -m venv $(VENV)

# $(call install,EXTRAS,STAMPS): the stamps go first and come back last, so none outlives a failed install.
define install
@rm -f $(2)
@echo "Installing aig[$(1)] into $(VENV); the first time this downloads a few GB, mostly PyTorch."
$(python) -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
@touch $(2)
endef

$(run_stamp): $(python) pyproject.toml constraints.txt
	$(call install,$(run_extras),$(run_stamp))

$(test_stamp): $(python) pyproject.toml constraints.txt
	$(call install,$(test_extras),$(run_stamp) $(test_stamp))

$(dev_stamp): $(python) pyproject.toml constraints.txt
	$(call install,$(dev_extras),$(run_stamp) $(test_stamp) $(dev_stamp))
