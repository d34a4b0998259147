.PHONY: fmt lint types test cards benchmark_configs bench

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

cards:
	python -m g2l_plugin.publishing.planned configs/g2l_breast.yaml model_cards/breast_vitl14.md
	python -m g2l_plugin.publishing.planned configs/g2l_prostate.yaml model_cards/prostate_vitl14.md

benchmark_configs:
	python -m g2l_plugin.tasks.configs configs/benchmarks

bench:
	python benchmarks/import_time.py
	python benchmarks/tile_reading.py
	python benchmarks/tile_reading.py --full-size
	python benchmarks/indexing.py
	python benchmarks/mixing.py
	python benchmarks/memory.py
	python benchmarks/sharpness.py
	python benchmarks/giant_teacher.py
	python benchmarks/probing.py
	python benchmarks/training.py
	python benchmarks/teacher_cache.py
	python benchmarks/cost.py > docs/cost.md
