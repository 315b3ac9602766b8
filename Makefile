# Two commands are all: `make demo` and `make test`. The rest is for working on poolkit itself.
PORT ?= 8000
MINUTES ?= 10
# Another environment, beside another PYTHON: make test PYTHON=python3.11 VENV=.venv-3.11
VENV ?= .venv
# Processes that share out the tests, each with servers of its own.
WORKERS ?= auto
python = $(VENV)/bin/python
bin = $(python) -m
bench = .venv-bench/bin/python -m benchmarks
# What the example needs. `make test` names it too, so that `make demo` finds it installed.
example = -e '.[aiosqlite,asyncpg,fastapi]' uvicorn

# What explores takes its time, and reaches no line that the others do not.
quick = $(addprefix --ignore=tests/,state/test_model.py state/test_state_machine.py \
	pool/test_gates.py pool/test_days.py pool/test_bad_days.py pool/test_schedules.py)

# Where another version of a dependency may behave in another way.
versioned = $(addprefix tests/,drivers integrations sqlalchemy compat dashboard)

# The dependencies of FastAPI as they are where it has no exit stack that poolkit knows.
without_stack = $(bin) pytest -n $(WORKERS) --dist worksteal -p tests.integrations.without_function_stack \
	$(wildcard tests/integrations/test_fastapi_*.py)

# make would take the `$w` of a password for a variable of its own.
ifdef DATABASE_URL
override DATABASE_URL := $(value DATABASE_URL)
export DATABASE_URL
endif

# Python reads the path of an environment in the encoding of the locale: these two know ASCII alone.
ifneq ($(filter C POSIX,$(LC_ALL)),)
export LC_ALL := C.UTF-8
endif

# These would import from elsewhere than the environment, keep an interpreter waiting, or take the
# assertions out of the tests.
unexport PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONEXECUTABLE PYTHONINSPECT PYTHONOPTIMIZE
# Tests start hundreds of interpreters: each would compile poolkit, and pytest every test, anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo docs test test-wheel test-sdist test-oldest test-newest test-tools soak coverage asyncpg-tests sqlalchemy-tests mutants check lint types fmt bench bench-instructions bench-quick clean

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -e 's/:.*## /: /' -e 's/^/make /'

demo:  ## serve the example on 127.0.0.1:8000 (PORT=..., DATABASE_URL=postgresql://...)
	@sh scripts/venv.sh $(VENV) $(example)
	@exec $(python) scripts/demo.py $(PORT)

test: .test-tools  ## run the whole suite
	$(bin) pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-wheel: VENV = .venv-wheel
test-wheel:  ## build the archives, and run the suite on the wheel, as it is installed
	@sh scripts/venv.sh $(VENV) $(example) -e '.[test]' build
	rm -rf dist
	$(bin) build
	$(bin) pip install -q --force-reinstall --no-deps dist/*.whl
	$(bin) pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-sdist:  ## unpack the source archive of test-wheel, and run the suite in it, as packagers do
	rm -rf build/sdist
	mkdir -p build/sdist
	@ls dist/*.tar.gz >/dev/null 2>&1 || { sh scripts/venv.sh .venv-wheel build && .venv-wheel/bin/python -m build --sdist; }
	tar -xzf dist/*.tar.gz -C build/sdist --strip-components 1
	$(MAKE) -C build/sdist test

test-oldest: VENV = .venv-oldest
test-oldest:  ## run what versions can break with the oldest version of every dependency
	@sh scripts/venv.sh $(VENV) -c tests/oldest.txt -e '.[test]'
	$(bin) pytest -n $(WORKERS) --dist worksteal $(or $(ARGS),$(versioned))
	$(if $(ARGS),,$(without_stack))

# Whose next version may break something; pre-releases of no other library are of interest.
newest = aiosqlite asyncmy asyncpg fastapi psycopg sqlalchemy starlette
test-newest: VENV = .venv-newest
test-newest:  ## the same with the newest versions, pre-releases of the drivers and frameworks included
	@sh scripts/venv.sh $(VENV) $(example) -e '.[test]'
	@$(bin) pip install -q --upgrade --pre $(newest)
	$(bin) pytest -n $(WORKERS) --dist worksteal $(or $(ARGS),$(versioned))
	$(if $(ARGS),,$(without_stack))

docs: .docs-tools  ## build the pages into build/docs; a warning fails
	$(bin) sphinx -b html -E -W --keep-going -q -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

test-tools:  ## install what tests need beyond Python (root, apt)
	@sh scripts/test-tools.sh

check: lint types  ## lint, types, import arrows

lint: .check-tools  ## style and import arrows
	$(bin) ruff check .
	$(bin) ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/zizmor --quiet --offline --persona auditor .github/workflows

types: .check-tools  ## mypy and pyright; of poolkit as it is installed, no type may be unknown
	$(bin) mypy
	$(bin) pyright --pythonpath $(python)
	rm -rf build/installed
	$(bin) pip install -q --no-deps --no-build-isolation --target build/installed .
	@PATH="$$($(python) -c 'import sys; print(sys.prefix)')/bin:$$PATH" \
	    PYTHONPATH="$(CURDIR)/build/installed" \
	    $(bin) pyright --verifytypes poolkit --ignoreexternal >build/types.txt \
	    || { cat build/types.txt; exit 1; }
	@grep score build/types.txt

soak: .test-tools  ## explore for MINUTES=10 each what the tests do in seconds (ONLY=asyncio)
	$(bin) scripts.soak --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY)) $(ARGS)

coverage: .test-tools  ## branch coverage of the heart by its own tests; fails below 100 %
	POOLKIT_TEST_EFFORT=4 $(bin) coverage run -m pytest -q $(addprefix tests/,state pool test_create.py test_messages.py) $(quick)
	$(bin) coverage report

asyncpg-tests: .test-tools  ## run asyncpg's own tests of its pool on poolkit.compat.asyncpg
	$(python) scripts/asyncpg_pool_tests.py $(ARGS)

sqlalchemy-tests: .test-tools  ## run SQLAlchemy's own tests of its asyncio extension on poolkit.sqlalchemy
	$(python) scripts/sqlalchemy_tests.py $(ARGS)

mutants: .test-tools  ## change the heart in small ways, see that a test fails (ARGS='_core/state --quick')
	$(python) scripts/mutants.py $(ARGS)

bench: .bench-tools  ## measure poolkit beside other pools, a quarter of an hour; BENCH=D: one group, 3 minutes at most
	$(bench) $(BENCH) --page docs/explanation/performance.md

bench-instructions: .test-tools  ## count the processor's instructions, compare with what is recorded (ARGS=--record)
	@sh scripts/test-tools.sh valgrind
	$(bin) benchmarks.instructions $(ARGS)

bench-quick: .bench-tools  ## the same in under two minutes, less exactly, and without writing the page
	$(bench) $(BENCH) --quick

fmt: .check-tools  ## format, and mend what can be mended
	$(bin) ruff check --fix .
	$(bin) ruff format .

clean:  ## remove what the other commands have made
	rm -rf .venv .venv[.-]* benchmarks/results var build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: .test-tools .check-tools .docs-tools
.test-tools:
	@sh scripts/venv.sh $(VENV) $(example) -e '.[test]'

.check-tools:
	@sh scripts/venv.sh $(VENV) $(example) -e '.[test]' -e '.[check]'

.docs-tools:
	@sh scripts/venv.sh $(VENV) $(example) -e '.[docs]'

# A pool that cannot be installed here is left out, rather than all of them.
peers = benchmarks/peers/requirements.txt
.PHONY: .bench-tools
.bench-tools:
	@sh scripts/venv.sh .venv-bench $(example) -r benchmarks/requirements.txt
	@sh scripts/venv.sh .venv-bench -r $(peers) || while read -r peer; do \
	    sh scripts/venv.sh .venv-bench "$$peer" </dev/null || echo "$$peer is left out"; \
	done <$(peers)
