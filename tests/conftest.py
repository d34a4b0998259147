"""Shared fixtures: small slides that the tests make, and the real ones where they are."""

import gc
import multiprocessing
import os
import shutil
import sys
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, and so do the processes that they start: before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from unittest import mock

import forked
import hypothesis
import numpy as np
import pytest
import tifffile
from loguru import logger

# A machine that is busy fails no test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

if sys.platform == "linux" and forked.FOLDER not in os.environ:
    forked.install(tempfile.mkdtemp(prefix="g2l-tests-"))


# A tenth of the tests' time would go to looking for garbage among all that they import.
gc.disable()


def pytest_collection_modifyitems(items):
    """Starts with long files that would come last, where a worker would be alone with one."""
    long = ("test_registration.py", "test_benchmark_configs.py")
    items.sort(key=lambda item: item.path.name not in long)


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def pytest_unconfigure():
    folder = Path(os.environ.get(forked.FOLDER, ""))
    if (folder / "owner").is_file() and (folder / "owner").read_text() == str(os.getpid()):
        shutil.rmtree(folder)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for another process or for a clock."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture(autouse=True, scope="module")
def keep_environment():
    """A file leaves the environment as before: Dask sets what commands would be started with."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True, scope="session")
def brief_speeds():
    """A speed is measured for no more than its three batches; it would be for a second."""
    from g2l_plugin.evaluation import speed

    with mock.patch.object(speed, "_LEAST_SECONDS", 0):
        yield


@pytest.fixture(autouse=True)
def keep_start_method():
    """Processes start as before: eva's datasets of embeddings have all that follow spawned."""
    before = multiprocessing.get_start_method(allow_none=True)
    yield
    if multiprocessing.get_start_method(allow_none=True) != before:
        multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def write_slide():
    """Writes a pyramidal tiled TIFF with a tissue-coloured disk on glass; returns its path."""

    def write(
        path: Path,
        size: int = 1024,
        mpp: float | None = 0.5,
        levels: int = 2,
        tissue: bool = True,
    ) -> Path:
        y, x = np.mgrid[:size, :size]
        image = np.full((size, size, 3), 245, np.uint8)
        disk = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size * 0.4 * tissue) ** 2
        noise = np.random.default_rng(size).integers(-20, 20, (size, size, 1))
        colour = np.array([200, 90, 150]) + 30 * np.sin(x / 5)[..., None]
        image[disk] = np.clip(colour + noise, 0, 255).astype(np.uint8)[disk]
        options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
        if mpp is not None:
            options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tifffile.TiffWriter(path) as writer:
            for level in range(levels):
                writer.write(image[:: 2**level, :: 2**level], subfiletype=int(level > 0), **options)
        return path

    return write


@pytest.fixture
def warned():
    """The warnings that are logged."""
    messages = []
    sink = logger.add(messages.append, level="WARNING")
    yield messages
    logger.remove(sink)


@pytest.fixture
def real_slides() -> Path:
    """Folder of the real slides: G2L_SLIDES, or that beside the checkout; skips without it."""
    folder = Path(
        os.environ.get("G2L_SLIDES")
        or Path(__file__).resolve().parents[2] / "shared" / "data" / "slides"
    )
    if not (folder / "CMU-1-Small-Region.svs").is_file():
        pytest.skip("no real slides: set G2L_SLIDES to their folder")
    return folder


@pytest.fixture
def settings(tmp_path):
    """The recipe's defaults, with folders of the test."""
    from g2l_plugin.planning.settings import Model, Settings

    return Settings(
        teachers=(Model("TEACHER", "hf-hub:bioptimus/H-optimus-0", dtype="bfloat16"),),
        student=Model("STUDENT", "hf-hub:histai/hibou-L"),
        batch_size=32,
        micro_batch_size=None,
        max_steps=100000,
        view_size=224,
        devices=1,
        accelerator="auto",
        precision="bf16-mixed",
        tile_size=256,
        buffer_tiles=8192,
        workers=8,
        n_slides=1000,
        output_root=tmp_path / "logs",
        index_root=tmp_path / "index",
        slides_root=tmp_path / "slides",
        slides=None,
        overwrite_mpp=None,
        packed_root=None,
        teacher_cache=None,
    )
