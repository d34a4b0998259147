"""Embeds a whole slide in the real tool, by the tool's own pipeline and with an exported student.

Run in the tool's environment: python whole_slides.py TOOL EXPORTED_FOLDER SLIDE OUT.npz
"""

import shutil
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch


def lazyslide(slide):
    import lazyslide as zs
    from lazyslide_student import MPP, SIZE, Student
    from wsidata import open_wsi

    wsi = open_wsi(slide)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, SIZE, mpp=MPP)
    start = time.perf_counter()
    zs.tl.feature_extraction(wsi, Student(), batch_size=32, num_workers=0)
    seconds = time.perf_counter() - start
    (table,) = wsi.tables
    return wsi.shapes["tiles"].bounds[["minx", "miny"]], wsi.tables[table].X, seconds


def wsinfer(slide):
    import pandas as pd
    import wsinfer_zoo.client
    from click.testing import CliRunner

    # It lists the models of its zoo before anything else, and needs the Hub for it.
    wsinfer_zoo.client.load_registry = lambda *_: types.SimpleNamespace(models={})
    from wsinfer.cli.infer import run

    exported, work = Path(sys.path[0]), Path(out).parent
    (work / "slides").mkdir()
    shutil.copy(slide, work / "slides" / "slide.tiff")
    words = ["--wsi-dir", work / "slides", "--results-dir", work / "results"]
    words += ["--config", exported / "config.json"]
    words += ["--model-path", exported / "torchscript_model.pt"]
    words += ["--seg-min-object-size-um2", 1000]  # the slide is small
    start = time.perf_counter()
    result = CliRunner().invoke(run, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(work / "results" / "model-outputs-csv" / "slide.csv")
    seconds = time.perf_counter() - start
    return table[["minx", "miny"]], table.filter(like="prob_"), seconds


if __name__ == "__main__":
    tool, folder, path, out = sys.argv[1:]
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    xy, features, seconds = globals()[tool](path)
    np.savez(out, xy=np.asarray(xy, int), features=np.asarray(features), seconds=seconds)
