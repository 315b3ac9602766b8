# Two commands are all: `make demo` and `make test`. The rest is for working on poolkit itself.
PORT ?= 8000
MINUTES ?= 10
bin = .venv/bin/python -m
# What the example needs. `make test` names it too, so that `make demo` finds it installed.
example = -e '.[aiosqlite,asyncpg,fastapi]' uvicorn

# These would import from elsewhere than the environment.
unexport PYTHONPATH PYTHONHOME

.PHONY: help demo test test-oldest test-tools soak check lint types fmt bench clean

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -e 's/:.*## /: /' -e 's/^/make /'

demo:  ## serve the example on 127.0.0.1:8000 (PORT=..., DATABASE_URL=postgresql://...)
	@sh scripts/venv.sh .venv $(example)
	@exec .venv/bin/python scripts/demo.py $(PORT)

test: .test-tools  ## run the whole suite
	$(bin) pytest $(ARGS)

test-oldest:  ## run the suite with the oldest version of every dependency
	@sh scripts/venv.sh .venv-oldest -c tests/oldest.txt -e '.[test]'
	.venv-oldest/bin/python -m pytest $(ARGS)

test-tools:  ## install what tests need beyond Python (root, apt)
	@sh scripts/test-tools.sh

check: lint types  ## lint, types, import arrows

lint: .test-tools  ## style and import arrows
	$(bin) ruff check .
	$(bin) ruff format --check .
	.venv/bin/lint-imports

types: .test-tools  ## mypy and pyright
	$(bin) mypy
	$(bin) pyright --pythonpath .venv/bin/python

soak: .test-tools  ## explore for MINUTES=10 what the tests explore in seconds
	.venv/bin/python scripts/soak.py $(MINUTES)

bench: .test-tools  ## measure what acquiring costs
	.venv/bin/python benchmarks/uncontended.py

fmt: .test-tools  ## format, and mend what can be mended
	$(bin) ruff check --fix .
	$(bin) ruff format .

clean:  ## remove what the other commands have made
	rm -rf .venv .venv-oldest var build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: .test-tools
.test-tools:
	@sh scripts/venv.sh .venv $(example) -e '.[test,types]'
