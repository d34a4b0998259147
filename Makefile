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
	python benchmarks/tile_reading.py
	python benchmarks/tile_reading.py --full-size
	python benchmarks/indexing.py
	python benchmarks/mixing.py
	python benchmarks/memory.py
	python benchmarks/sharpness.py
	python benchmarks/giant_teacher.py
