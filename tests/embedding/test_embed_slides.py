import csv
import json
import shutil

import h5py
import numpy as np
import openslide
import pytest
import timm
import torch
from eva.vision.data.transforms import ResizeAndCrop
from helpers import damage, save_tiny_model
from safetensors.torch import load_file, save_file

from g2l_plugin.embedding import embed_slides as module
from g2l_plugin.embedding.embed_slides import embed_slides
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.slides.cohort import read_cohort
from g2l_plugin.slides.index_files import read_xy
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.tile_grid import TileGrid

MEAN, STD = (0.7, 0.6, 0.65), (0.2, 0.25, 0.15)
"""Of `save_tiny_model`, whose input has 32 px."""

GRID = TileGrid(32, 32, min_sharpness=0)


@pytest.fixture
def slides(tmp_path, write_slide):
    for number in range(3):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 256 + 64 * number)
    return tmp_path / "slides"


@pytest.fixture
def index(tmp_path_factory, write_slide):
    """An index of three slides, made once and read only."""
    folder = tmp_path_factory.getbasetemp() / "embedded"
    if not (folder / "index" / "slides.csv").is_file():
        for number in range(3):
            write_slide(folder / "slides" / f"{number}.tiff", 256 + 64 * number)
        build_index(folder / "index", GRID, folder / "slides", workers=1)
    return folder / "index"


@pytest.fixture
def model(tmp_path):
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def embed(tmp_path, model, index):
    """Embeds with the tiny model, reading in this process: the index, or other slides."""

    def call(output="out", slides=index, model=model, **options):
        if slides != index:
            options = {"tile_size": 32, "min_sharpness": 0} | options
        return embed_slides(str(model), slides, tmp_path / output, **{"workers": 0} | options)

    return call


def read(path):
    with h5py.File(path) as file:
        return file["features"][:], file["coords"][:]


def read_all(folder):
    return {path.name: read(path) for path in sorted(folder.glob("*.h5"))}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            np.testing.assert_array_equal(one, other)


def plain_loop(model, slide, xy, size, transform):
    """Reads and embeds tile by tile, by OpenSlide and timm alone."""
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    with openslide.OpenSlide(str(slide)) as handle, torch.inference_mode():
        regions = [handle.read_region(tuple(c), 0, (size, size)).convert("RGB") for c in xy]
        pixels = [torch.from_numpy(np.array(region)).permute(2, 0, 1) for region in regions]
        return torch.cat([network(transform(tile)[None]) for tile in pixels]).numpy()


@pytest.mark.parametrize("size", [32, 64])
def test_embeddings_are_those_of_a_plain_loop_and_the_resizing_of_eva(
    embed, model, slides, size, warned
):
    rows = embed(slides=slides, tile_size=size, workers=2, batch_size=16)
    assert [row.status for row in rows] == ["embedded"] * 3
    assert any("sees 1 microns per pixel" in message for message in warned) == (size == 64)
    transform = ResizeAndCrop(32, MEAN, STD)
    for row in rows:
        features, xy = read(slides.parent / "out" / f"{row.slide_id}.h5")
        assert features.dtype == np.float32 and xy.dtype == np.int64
        assert len(features) == len(xy) == row.tiles > 0
        expected = plain_loop(model, slides / row.slide, xy.tolist(), size, transform)
        np.testing.assert_allclose(features, expected, atol=1e-4)


def test_a_file_says_what_its_numbers_are(embed, tmp_path, index):
    rows = embed(dtype="float16")
    assert not (tmp_path / "out" / "index").exists()
    cohort = read_cohort(index / "cohort.csv")
    with h5py.File(tmp_path / "out" / "2.h5") as file:
        np.testing.assert_array_equal(file["coords"], read_xy(index, cohort[2]))
        assert file["features"].dtype == np.float16
        coords, facts = dict(file["coords"].attrs), dict(file.attrs)
    assert coords == {
        "name": "2",
        "savetodir": str(tmp_path / "out"),
        "patch_size": 32,
        "patch_size_level0": 32,
        "target_magnification": 20,
        "patch_level": 0,
        "overlap": 0,
        "level0_width": 384,
        "level0_height": 384,
    }
    expected = {"mpp": 0.5, "level0_mpp": 0.5, "tile_size": 32, "lost_tiles": 0, "slide": "2.tiff"}
    assert facts.items() >= expected.items()
    assert len(facts["model_sha256"]) == 64
    assert [row.slide_id for row in rows] == ["0", "1", "2"]


def test_tiles_that_are_scaled_have_no_level_that_another_tool_would_read(tmp_path, write_slide):
    write_slide(tmp_path / "slides" / "a.tiff", 512, mpp=0.25, levels=1)
    options = {"tile_size": 56, "workers": 0, "min_sharpness": 0}
    embed_slides("demo:teacher", tmp_path / "slides", tmp_path / "out", **options)
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        attributes = dict(file["coords"].attrs)
        assert (file["coords"][:] % 112 == 0).all()
    assert attributes["patch_size_level0"] == 112 and "patch_level" not in attributes


def test_stamp_has_its_coordinates_in_microns(embed, tmp_path, write_slide):
    write_slide(tmp_path / "fine" / "a.tiff", 512, mpp=0.25)
    embed("pixels", tmp_path / "fine")
    embed("stamp", tmp_path / "fine", layout="stamp")
    features, xy = read(tmp_path / "pixels" / "a.h5")
    with h5py.File(tmp_path / "stamp" / "a.h5") as file:
        np.testing.assert_array_equal(file["feats"], features)
        np.testing.assert_allclose(file["coords"], xy * 0.25)
        assert (file.attrs["unit"], file.attrs["feat_type"]) == ("um", "tile")
        assert (file.attrs["tile_size_um"], file.attrs["tile_size_px"]) == (16, 32)
        assert file.attrs["extractor"].startswith("local-dir:")


def test_a_stopped_run_goes_on_and_gives_the_same(embed, tmp_path, monkeypatch):
    embed("whole")
    write = module.write_file

    def stop_at_the_second(path, *arguments):
        if path.stem == "1":
            raise KeyboardInterrupt
        write(path, *arguments)

    monkeypatch.setattr(module, "write_file", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed()
    monkeypatch.undo()
    first = tmp_path / "out" / "0.h5"
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["0.h5"]
    before = first.stat().st_mtime_ns
    rows = embed()
    assert first.stat().st_mtime_ns == before
    assert_same(read_all(tmp_path / "out"), read_all(tmp_path / "whole"))
    table = list(csv.DictReader((tmp_path / "out" / "embeddings.csv").open()))
    assert [int(row["tiles"]) for row in table] == [row.tiles for row in rows]
    assert embed() == rows


def test_only_slides_that_are_new_or_changed_are_embedded(embed, tmp_path, slides, write_slide):
    embed(slides=slides)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")}
    write_slide(slides / "1.tiff", 448)
    write_slide(slides / "3.tiff", 256)
    embed(slides=slides)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")}
    assert {name for name in after if after[name] != before.get(name)} == {"1.h5", "3.h5"}


def test_a_damaged_tile_is_left_out_counted_and_tried_again(embed, tmp_path, slides, warned):
    whole = tmp_path / "copy.tiff"
    shutil.copy2(slides / "1.tiff", whole)
    embed("whole", slides)
    damage(slides / "1.tiff", 0, [4])  # of 3 x 3 compressed tiles of 128 px
    with pytest.raises(UserError, match=r"16 tiles cannot be read.*--max-lost.*in 1.tiff"):
        embed(slides=slides)
    assert any("left out and counted" in message for message in warned)
    features, xy = read(tmp_path / "out" / "1.h5")
    intact, all_xy = read(tmp_path / "whole" / "1.h5")
    kept = ~((all_xy >= 128) & (all_xy < 256)).all(axis=1)
    assert (~kept).sum() == 16
    np.testing.assert_array_equal(xy, all_xy[kept])
    np.testing.assert_allclose(features, intact[kept], atol=1e-5)
    with h5py.File(tmp_path / "out" / "1.h5") as file:
        assert file.attrs["lost_tiles"] == 16
    row = embed(slides=slides, max_lost=0.2)[1]
    assert (row.status, row.lost_tiles) == ("embedded", 16) and "16 tiles" in row.reason
    shutil.copy2(whole, slides / "1.tiff")
    assert embed(slides=slides)[1].lost_tiles == 0
    assert_same(read_all(tmp_path / "out"), read_all(tmp_path / "whole"))


def test_a_slide_that_cannot_be_read_does_not_stop_the_others(embed, tmp_path, slides):
    (slides / "1.tiff").write_bytes(b"no slide")
    with pytest.raises(UserError, match=r"1 of 3 slides cannot be embedded.*1\.tiff"):
        embed(slides=slides)
    assert sorted(read_all(tmp_path / "out")) == ["0.h5", "2.h5"]
    rows = embed(slides=slides, max_lost=0.5)
    assert [row.status for row in rows] == ["embedded", "cannot be opened", "embedded"]


def test_a_slide_that_goes_while_others_are_embedded_has_no_file(
    embed, tmp_path, slides, monkeypatch
):
    read_ahead = module.read_in_order

    def remove_first(*arguments):
        (slides / "0.tiff").unlink()
        return read_ahead(*arguments)

    monkeypatch.setattr(module, "read_in_order", remove_first)
    rows = embed(slides=slides, max_lost=1)
    assert [row.status for row in rows] == ["missing", "embedded", "embedded"]
    assert sorted(read_all(tmp_path / "out")) == ["1.h5", "2.h5"]


def test_embeddings_of_another_model_or_of_other_settings_are_not_mixed(embed, tmp_path, slides):
    embed()
    before = read_all(tmp_path / "out")
    other = save_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"0\.h5 has embeddings of another model, local-dir:.*model"
    ):
        embed(model=other)
    shutil.move(tmp_path / "model", tmp_path / "moved")
    embed(model=tmp_path / "moved")  # by its content, and not by its place
    with pytest.raises(UserError, match="`tile_size` is 32 there, and 224 now"):
        embed(model=tmp_path / "moved", slides=slides, tile_size=None)
    with pytest.raises(UserError, match="`layout` is trident there"):
        embed(model=tmp_path / "moved", layout="stamp")
    assert_same(read_all(tmp_path / "out"), before)
    with h5py.File(tmp_path / "out" / "of_another_tool.h5", "w") as file:
        file["features"] = np.zeros((2, 3))
    with pytest.raises(UserError, match=r"of_another_tool\.h5 was not written by g2l embed"):
        embed(model=tmp_path / "moved")


def test_a_damaged_file_is_made_again(embed, tmp_path, warned):
    embed()
    before = read_all(tmp_path / "out")
    (tmp_path / "out" / "2.h5").write_bytes(b"cut off")
    embed()
    assert_same(read_all(tmp_path / "out"), before)
    assert any("2.h5 is damaged and made again" in message for message in warned)


def test_shards_together_make_the_whole(embed, tmp_path, slides):
    embed("whole", slides)
    parts = [embed(slides=slides, shard=(number, 2)) for number in (2, 1)]
    assert [[row.slide_id for row in part] for part in parts] == [["1"], ["0", "2"]]
    assert_same(read_all(tmp_path / "out"), read_all(tmp_path / "whole"))
    before = (tmp_path / "out" / "0.h5").stat().st_mtime_ns
    embed(slides=slides)  # writes the table of all
    assert (tmp_path / "out" / "0.h5").stat().st_mtime_ns == before
    tables = [(tmp_path / name / "embeddings.csv").read_text() for name in ("out", "whole")]
    assert tables[0] == tables[1]


def test_shards_of_an_index_are_its_parts(embed):
    parts = [embed(shard=(number, 2)) for number in (1, 2)]
    assert [[row.slide_id for row in part] for part in parts] == [["0", "2"], ["1"]]


def test_a_slide_without_tissue_has_no_file_and_is_not_lost(embed, tmp_path, slides, write_slide):
    write_slide(slides / "glass.tiff", 256, tissue=False)
    rows = embed(slides=slides)
    assert rows[-1].status == "no tissue" and "no tile on tissue" in rows[-1].reason
    assert not (tmp_path / "out" / "glass.h5").exists()


def test_a_list_is_read_from_its_folder_or_from_root(embed, tmp_path, slides):
    (slides / "few.csv").write_text("slide,patient\n2.tiff,p2\n0.tiff,p0\n")
    rows = embed(slides=slides / "few.csv")
    assert [(row.slide_id, row.patient) for row in rows] == [("0", "p0"), ("2", "p2")]
    moved = shutil.move(slides / "few.csv", tmp_path / "few.csv")
    assert [row.status for row in embed(slides=moved, root=slides)] == ["embedded"] * 2
    assert [row.slide for row in embed("one", slides=slides / "1.tiff")] == ["1.tiff"]


def test_two_slides_of_one_name_are_refused(embed, slides, write_slide):
    write_slide(slides / "more" / "2.tiff", 256)
    with pytest.raises(UserError, match=r"2\.tiff and more/2\.tiff would both be 2\.h5"):
        embed(slides=slides)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "clam"}, "`layout` is 'clam'. Expected trident or stamp"),
        ({"dtype": "int8"}, "`dtype` is 'int8'"),
        ({"precision": "16"}, "'16'. Expected 32-true or bf16-mixed"),
        ({"accelerator": "tpu"}, "'tpu'. Expected auto or cpu or cuda"),
        ({"batch_size": 0}, "0 tiles per batch"),
        ({"tile_size": 0}, "Tiles of 0 px"),
        ({"slides": "nowhere"}, "nowhere does not exist. Expected a folder of slides"),
        ({"model": "nonsense"}, "Unknown model 'nonsense'"),
        ({"model": "scratch:vits14"}, "has random weights"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(embed, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        embed(**options)
    assert not (tmp_path / "out").exists()


def test_an_index_of_other_tiles_is_refused(embed, tmp_path, index):
    with pytest.raises(UserError, match="made with `target_mpp` 0.5, and 1.0 is given"):
        embed(target_mpp=1.0)
    settings = json.loads((index / "index.json").read_text())
    settings["grid"]["height"] = 64
    (tmp_path / "index.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="are 32x64 px. Expected square ones"):
        embed(slides=tmp_path, tile_size=None)


def test_embeddings_that_are_not_finite_are_not_written(embed, tmp_path, model):
    weights = load_file(model / "model.safetensors")
    weights["norm.weight"] *= 1e6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"0\.tiff by local-dir:.* are not finite.*float16"):
        embed(dtype="float16")
    assert not read_all(tmp_path / "out")


def test_an_embedding_may_have_the_mean_patch_token_too(tmp_path, model, index):
    source = EncoderSource(f"local-dir:{model}", output="class_and_mean_patch")
    embed_slides(source, index, tmp_path / "out", workers=0)
    assert read(tmp_path / "out" / "0.h5")[0].shape[1] == 64


def test_half_precision_is_close(embed, tmp_path):
    embed("whole")
    embed("half", precision="bf16-mixed")
    whole, half = (read(tmp_path / name / "2.h5")[0] for name in ("whole", "half"))
    assert 0 < np.abs(whole - half).max() < 0.2
