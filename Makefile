.PHONY: fmt lint types test bench

fmt:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

test:
	pytest

bench:
	python benchmarks/import_time.py
