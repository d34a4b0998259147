"""Embeds a whole slide in the real tool, by the tool's own pipeline and with an exported student.

Run in the tool's environment: python whole_slides.py TOOL EXPORTED_FOLDER SLIDE OUT.npz [TILES]

TILES is JSON of arguments of LazySlide's `tile_tissues` that differ from what the exported file
says, and its `batch_size`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch


def lazyslide(slide, tiles):
    import lazyslide as zs
    from lazyslide_student import MPP, SIZE, Student
    from wsidata import open_wsi

    wsi, student = open_wsi(slide), Student()
    batch_size = tiles.pop("batch_size", 32)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, **{"tile_px": SIZE, "mpp": MPP} | tiles)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        zs.tl.feature_extraction(wsi, student, batch_size=batch_size, num_workers=0)
        seconds = time.perf_counter() - start
    (table,) = wsi.tables
    return wsi.shapes["tiles"].bounds[["minx", "miny"]], wsi.tables[table].X, seconds


def trident(slide, tiles):
    import h5py
    from trident import Processor
    from trident.segmentation_models import segmentation_model_factory
    from trident_student import MPP, SIZE, make_encoder

    work = Path(out).parent
    (work / "slides").mkdir()
    shutil.copy(slide, work / "slides" / f"slide{Path(slide).suffix}")
    places = {"job_dir": str(work / "job"), "wsi_source": str(work / "slides")}
    processor = Processor(**places, reader_type="openslide", max_workers=0)
    otsu = segmentation_model_factory("otsu")  # the others are downloaded
    processor.run_segmentation_job(otsu, device="cpu")
    coords = processor.run_patching_job(target_magnification=10 / MPP, patch_size=SIZE)
    options = {"device": "cpu", "batch_limit": tiles.get("batch_size", 32)}
    for name in ("warm_up", "features"):
        start = time.perf_counter()
        processor.run_patch_feature_extraction_job(coords, make_encoder(), saveto=name, **options)
        seconds = time.perf_counter() - start
    (path,) = (work / "job").rglob("features/slide.h5")
    with h5py.File(path) as file:
        return file["coords"][:], file["features"][:], seconds


def wsinfer(slide, tiles):
    import pandas as pd

    # It lists the models of its zoo before anything else: this is a zoo without any, since the list
    # is on the Hub.
    zoo = Path.home() / ".wsinfer-zoo"
    zoo.mkdir(exist_ok=True)
    (zoo / "wsinfer-zoo-registry.json").write_text('{"models": {}}')
    exported, work = Path(sys.path[0]), Path(out).parent
    (work / "slides").mkdir()
    shutil.copy(slide, work / "slides" / f"slide{Path(slide).suffix}")
    words = ["--wsi-dir", work / "slides", "--results-dir", work / "results"]
    words += ["--config", exported / "config.json"]
    words += ["--model-path", exported / "torchscript_model.pt"]
    words += ["--num-workers", 1]  # with 0 it fails as it writes GeoJSON
    words += ["--seg-min-object-size-um2", 1000]  # the slide is small
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "wsinfer", "run", *map(str, words)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
    )
    seconds = time.perf_counter() - start
    table = pd.read_csv(work / "results" / "model-outputs-csv" / "slide.csv")
    return table[["minx", "miny"]], table.filter(like="prob_"), seconds


if __name__ == "__main__":
    tool, folder, path, out, tiles = [*sys.argv[1:], "{}"][:5]
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    xy, features, seconds = globals()[tool](path, json.loads(tiles))
    np.savez(out, xy=np.asarray(xy, int), features=np.asarray(features), seconds=seconds)
