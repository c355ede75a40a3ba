# Each target sets up what it needs and says so first; see packaging/setup.
# ARGS is handed on: make test ARGS='-k wire', make serve ARGS='--port 7200'.

.DEFAULT_GOAL := help
.PHONY: help setup test test-dependencies test-systems test-image lint format demo serve bench fuzz soak install dist deb docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing: Debian packages, the user stap-server, .venv
	@packaging/setup

test: ## lint, check types, run the whole test suite (as stap-server where root calls)
	@packaging/setup --test
	@$(MAKE) --no-print-directory lint
	@packaging/run-tests $(ARGS)

test-dependencies: setup ## test with the lowest and the newest versions of the libraries: ARGS=lowest for one
	@packaging/test-dependencies $(ARGS)

test-systems: ## test the real programs in roots of other Debian systems, and their clients with each other's servers: ARGS=trixie
	@packaging/setup --systems
	@packaging/test-systems $(ARGS)

test-image: ## build the container's images and run them, with podman: ARGS are pytest's
	@packaging/setup --images
	@packaging/test-image $(ARGS)

lint: setup ## ruff, and mypy for the lowest and the highest Python
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict
	.venv/bin/mypy --strict --python-version 3.14

format: setup ## format the code, and mend what ruff can mend by itself
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

demo: ## start a server, compile a real script through it, show the result, stop
	@packaging/demo $(ARGS)

serve: ## start a server in the foreground and print a line to try
	@packaging/demo --serve $(ARGS)

bench: setup ## measure beside SystemTap's own server: compiles, then the control of twenty servers (half an hour)
	@packaging/as-stap-server python bench/performance.py $(ARGS)
	@packaging/as-stap-server python bench/servers.py

fuzz: setup ## give hostile bytes to every parser: TIME=60 seconds each, ARGS='zip options' for some of them
	@.venv/bin/python -c 'import atheris' 2>/dev/null || .venv/bin/python -m pip install --quiet atheris || \
	    echo 'atheris is not to be had: inputs are changed by chance'
	@.venv/bin/python tests/fuzz/run.py --time $(or $(TIME),60) $(ARGS)

soak: setup ## all kinds of clients against one server, MINUTES=3 of them; fails if anything is not as before
	@packaging/as-stap-server python bench/soak.py --minutes $(or $(MINUTES),3) $(ARGS)

install: setup ## install for all users: PREFIX=/usr/local DESTDIR= SYSCONFDIR=/etc EXTRAS=
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' SYSCONFDIR='$(SYSCONFDIR)' EXTRAS='$(EXTRAS)' packaging/install

dist: setup ## build a wheel and an sdist in dist/, and the wheel of the client alone
	.venv/bin/python -m hatchling build
	cd packaging/client && ../../.venv/bin/python -m hatchling build -t wheel -d ../../dist

deb: setup ## build a Debian package in dist/, in place of systemtap-server; EXTRAS=farm
	@EXTRAS='$(EXTRAS)' packaging/deb

docs: setup ## build the pages of docs/ into build/docs
	.venv/bin/mkdocs build --strict

clean: ## remove .venv, caches and build results
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
