.PHONY: fmt lint types test slow coverage fuzz reach docs pictures notebook cards benchmark_configs costs bench

fmt:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .
	lint-imports

types:
	mypy

test:
	pytest

# `pip install coverage` first. In one process; what eva runs in processes of its own is not counted.
coverage:
	coverage run --source=g2l_plugin -m pytest -n0
	coverage report --skip-covered --sort=miss --show-missing

# What runs for a minute each, and is left out of `pytest`.
slow:
	pytest -m slow

fuzz:
	FUZZ_EXAMPLES=5000 pytest tests/fuzz

reach:
	pytest -n0 -o norecursedirs= tests/reach

docs:
	mkdocs build --strict

# The pictures of the documentation: RUN is a run of configs/quickstart.yaml, SLIDE any slide.
pictures:
	python tools/pictures.py $(RUN) docs/pictures --slide $(SLIDE)

notebook:
	python tools/notebook.py docs/tiles_to_student.ipynb

cards:
	python tools/planned_cards.py configs/g2l_breast.yaml model_cards/breast_vitl14.md
	python tools/planned_cards.py configs/g2l_prostate.yaml model_cards/prostate_vitl14.md

benchmark_configs:
	python tools/benchmark_configs.py configs/benchmarks

costs:
	python tools/cost.py > docs/cost.md

bench:
	python benchmarks/import_time.py
	python benchmarks/tile_reading.py
	python benchmarks/tile_reading.py --full-size
	python benchmarks/indexing.py
	python benchmarks/embedding.py
	python benchmarks/exports.py
	python benchmarks/mixing.py
	python benchmarks/memory.py
	python benchmarks/sharpness.py
	python benchmarks/giant_teacher.py
	python benchmarks/probing.py
	python benchmarks/training.py
	python benchmarks/teacher_cache.py
