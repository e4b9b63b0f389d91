.PHONY: demo test check bench nightly clean
PYTHON := .venv/bin/python
TEST_PACKAGES := docker.io docker-registry iproute2 mmdebstrap openssl podman skopeo strace

demo: ## the main job on this machine alone: no Docker, no registry server
	tools/venv
	tools/debian-packages mmdebstrap
	$(PYTHON) fixtures/make.py
	$(PYTHON) examples/demo.py

test: ## every test but the nightly ones, on a real engine and real registries
	tools/venv
	tools/debian-packages $(TEST_PACKAGES)
	tools/registry-programs & programs=$$!; $(PYTHON) fixtures/make.py && wait $$programs
	$(PYTHON) -m pytest -n 2 --dist loadgroup --cov --cov-report=term $(ARGS)

nightly: ## the slow rows of the reliability matrix
	tools/venv
	tools/debian-packages $(TEST_PACKAGES)
	tools/registry-programs & programs=$$!; $(PYTHON) fixtures/make.py && wait $$programs
	$(PYTHON) -m pytest -n 2 --dist loadgroup -m nightly $(ARGS)

check: ## style and types
	tools/venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: ## every number that the documentation claims, beside what a user would use instead
	tools/venv
	tools/debian-packages docker.io docker-registry iproute2 mmdebstrap
	$(PYTHON) fixtures/make.py
	$(PYTHON) benchmarks/run.py $(ARGS)

clean:
	rm -rf .venv .cache .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
