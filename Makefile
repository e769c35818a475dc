# SPDX-License-Identifier: Apache-2.0
# The two commands are `make demo` and `make test`; each installs what is missing first. It needs make and git only.
# Rules for the C programs are in core/Makefile; nothing here knows how C is compiled.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
# Two compilers at once at most: the test machines have two cores, and guests run beside.
JOBS ?= 2
# C tests at a time: they sleep more than they run.
TEST_JOBS ?= 3
FUZZ_SECONDS ?= 60
STRESS_SECONDS ?= 20
# Which guest tests run, as a pytest mark expression.
GUEST_TESTS ?= not slow
# Coverage below these fails the run (0: print only).
PYTHON_COVERAGE ?= 90
C_COVERAGE ?= 85

PACKAGE_LISTS := tests/ci/packages.txt $(wildcard qemu-tests/packages.txt)
CORE := $(MAKE) --no-print-directory -j$(JOBS) -C core PYTHON=$(abspath $(PY)) FUZZ_SECONDS=$(FUZZ_SECONDS) STRESS_SECONDS=$(STRESS_SECONDS)
# What the compiled module is made from; the tables of scsi/ become C.
BUILT_FROM := setup.py pyproject.toml vhost_scsi/dataplane/build.py $(wildcard core/*.c core/*.h scsi/*.py)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- what is needed --------------------------------------------------------------------------------------------------

.PHONY: deps
deps: $(STAMPS)/venv ## install what is missing: Debian packages and .venv

# The stamps live in the environment, so that removing .venv starts from nothing.
$(STAMPS)/packages: $(PACKAGE_LISTS) tests/ci/install-packages
	@tests/ci/install-packages $(PACKAGE_LISTS)
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: $(STAMPS)/packages pyproject.toml tests/ci/make-venv
	@tests/ci/make-venv $(VENV)
	@mkdir -p $(@D) && touch $(STAMPS)/packages $@

.PHONY: build
build: $(STAMPS)/build ## compile the C core and install the package, editable, into .venv

# CFLAGS reaches the compiler through setuptools: a warning is an error here, but not for somebody who builds a wheel
# with a compiler that we have not seen.
$(STAMPS)/build: $(STAMPS)/venv $(BUILT_FROM)
	@CFLAGS="$(CFLAGS) -Werror" $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

.PHONY: docs
docs: build ## write docs/conformance.md from the tables
	$(PY) -m vhost_scsi.scsi.conformance docs/peers.tsv docs/conformance.md

# --- checks ----------------------------------------------------------------------------------------------------------

.PHONY: lint
lint: deps ## ruff: style, imports, banned short names
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: typecheck
typecheck: build ## mypy --strict over the package
	$(PY) -m mypy

.PHONY: core-test
core-test: deps ## C tests, plain, and the fuzz corpus replayed under ASan and UBSan
	@$(CORE) -j$(TEST_JOBS) test
	@$(CORE) -j$(TEST_JOBS) replay

.PHONY: asan
asan: deps ## C tests, the fuzz corpus and the Python tests over the core, under ASan and UBSan
	@$(CORE) -j$(TEST_JOBS) asan
	@$(CORE) -j$(TEST_JOBS) replay
	@tests/ci/asan-python

.PHONY: tsan
tsan: deps ## C tests and stress programs under ThreadSanitizer
	@$(CORE) -j$(TEST_JOBS) tsan

.PHONY: fuzz
fuzz: build ## libFuzzer over every C fuzz target, atheris over vhost-user and iSCSI's text, FUZZ_SECONDS=60 each, JOBS=2 at a time
	@$(CORE) fuzz
	@tests/ci/fuzz-python $(FUZZ_SECONDS) $(JOBS)

.PHONY: seeded
seeded: deps ## plant the bugs of tests/seeded one by one; each must be caught by the tests named in it
	$(PY) tests/seeded/run.py

.PHONY: pytest
pytest: build ## Python tests; line coverage of Python and, with the C tests, of core/
	@STRESS_SECONDS=$(STRESS_SECONDS) tests/ci/coverage $(PYTHON_COVERAGE) $(C_COVERAGE)

.PHONY: packaging
packaging: build ## wheel from the sdist into an empty environment
	$(PY) -m pytest -q -m slow tests/test_layout.py

.PHONY: slow
slow: build ## the tests that take long: many connections, many LUNs, io_uring forbidden
	$(PY) -m pytest -q -m slow --timeout=3000 tests --ignore=tests/test_layout.py

.PHONY: qemu-tests
qemu-tests: build ## tests that boot a real guest, two at a time (GUEST_TESTS=guest: the slow ones too)
	$(PY) -m pytest qemu-tests -n 2 --timeout=1200 -m "$(GUEST_TESTS)"

.PHONY: test
test: ## everything that must pass before a change goes in (<= 25 minutes)
	tests/ci/run-steps deps build lint typecheck core-test asan tsan pytest packaging qemu-tests

.PHONY: test-all
# Long enough to find what the short runs of every change do not.
test-all: export FUZZ_SECONDS := 600
test-all: export STRESS_SECONDS := 300
test-all: export GUEST_TESTS := guest
# The benches come first: they want a machine that nothing has warmed up or filled.
test-all: ## everything without a time limit; writes docs/test-report.md (STEPS_OF=any: only what has not passed in an earlier commit)
	tests/ci/run-steps --report docs/test-report.md deps build bench bench-iscsi lint typecheck core-test asan tsan pytest packaging qemu-tests slow seeded fuzz

.PHONY: bench
bench: build ## measure: IOPS of one worker against a polled driver
	$(PY) -m bench

.PHONY: bench-iscsi
bench-iscsi: build ## measure: our iSCSI target beside tgtd and a bare sendmsg loop
	$(PY) -m bench.iscsi

.PHONY: demo
demo: build ## boot a real Debian from our back end and look into its queues
	$(PY) qemu-tests/demo.py

.PHONY: clean
clean: ## remove what was built; .venv and .cache stay
	rm -rf build dist core/gen vhost_scsi/_core.*.so vhost_scsi/_core.c vhost_scsi/_core.pyi vhost_scsi.egg-info $(STAMPS)/build
