"""Tiles decoded from a TIFF file are those of OpenSlide, and damage is told and never fatal."""

import contextlib
import io

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from helpers import damage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from g2l_plugin import TileDataset, TileGrid, build_index
from g2l_plugin.errors import UserError
from g2l_plugin.slides.overview import read_overview
from g2l_plugin.slides.proof import prove
from g2l_plugin.slides.slide import ReadPlan, open_slide, plan_reads, read_tile
from g2l_plugin.slides.tiff import DecodedTiles, TiffSlide, Unsupported

SIZE = (1000, 700)


def tissue(size=SIZE, seed=0):
    """A picture with structure at many scales, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    shape = size[::-1]
    noise = sum(ndimage.gaussian_filter(rng.normal(size=shape), s) * s**1.2 for s in (2, 4, 8, 16))
    stain = 40 * noise[..., None] / noise.std() * (0.6, 1, 0.5)
    return np.clip(stain + np.array([190, 130, 180]), 0, 255).astype(np.uint8)


def split_tables(jpeg):
    """Splits a JPEG into its tables and the rest, and drops what names its colours."""
    tables, rest, place = b"", b"", 2
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] in (0xDB, 0xC4):
            tables += jpeg[place:end]
        elif jpeg[place + 1] not in (0xE0, 0xEE):
            rest += jpeg[place:end]
        place = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[place:]


def jpeg_options(colours, subsampling):
    """Pillow's options of an encoding."""
    options = {"format": "JPEG", "quality": 80}
    return options | (
        {"keep_rgb": True, "subsampling": 0} if colours == "rgb" else {"subsampling": subsampling}
    )


def encode(tile, colours, subsampling, plain=False):
    buffer = io.BytesIO()
    if colours == "j2k":
        Image.fromarray(tile).save(buffer, "JPEG2000", no_jp2=True, num_resolutions=4)
        return buffer.getvalue()
    Image.fromarray(tile).save(buffer, **jpeg_options(colours, subsampling))
    return buffer.getvalue() if plain else split_tables(buffer.getvalue())[1]


def write_tiff(
    path,
    levels,
    tile=(240, 240),
    colours="ycbcr",
    subsampling=0,
    plain=False,
    holes=(),
    mpp=0.25,
    description=None,
    **options,
):
    """Writes levels as an Aperio slide would have them: abbreviated JPEGs that share tables."""
    with tifffile.TiffWriter(path, **options) as writer:
        for number, pixels in enumerate(levels):
            height, width = pixels.shape[:2]
            rows, columns = -(-height // tile[1]), -(-width // tile[0])
            padded = np.zeros((rows * tile[1], columns * tile[0], 3), np.uint8)
            padded[:height, :width] = pixels
            data = [
                padded[y : y + tile[1], x : x + tile[0]]
                for y in range(0, rows * tile[1], tile[1])
                for x in range(0, columns * tile[0], tile[0])
            ]
            tags = []
            if colours != "j2k" and not plain:
                buffer = io.BytesIO()
                Image.fromarray(data[0]).save(buffer, **jpeg_options(colours, subsampling))
                tables = split_tables(buffer.getvalue())[0]
                tags = [(347, 7, len(tables), tables, True)]
            factors = {0: (1, 1), 1: (2, 1), 2: (2, 2)}[subsampling]
            writer.write(
                (
                    b"" if n in holes else encode(part, colours, subsampling, plain)
                    for n, part in enumerate(data)
                ),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=tile[::-1],
                photometric="ycbcr" if colours == "ycbcr" else "rgb",
                subsampling=factors if colours == "ycbcr" else None,
                compression=33005 if colours == "j2k" else "jpeg",
                extratags=tags,
                subfiletype=int(number > 0),
                description=description,
                metadata=None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )
    return path


APERIO = "Aperio Image Library v12\r\n1000x700 [0,0,1000x700] (240x240) J2K|AppMag = 40|MPP = 0.25"
LAYOUTS = {
    "YCbCr 4:4:4": {},
    "YCbCr 4:2:2": {"subsampling": 1},
    "YCbCr 4:2:0": {"subsampling": 2},
    "RGB": {"colours": "rgb"},
    "whole JPEGs": {"plain": True},
    "wide tiles": {"tile": (256, 128), "subsampling": 1},
    "BigTIFF": {"bigtiff": True},
    "JPEG 2000": {"colours": "j2k", "description": APERIO},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("layout") / "slide.tiff"
    half = np.asarray(Image.fromarray(tissue()).resize((500, 350), Image.Resampling.BOX))
    return write_tiff(path, [tissue(), half], **LAYOUTS[request.param])


@settings(max_examples=25)
@given(st.data())
def test_a_region_equals_what_openslide_reads(layout, data):
    level = data.draw(st.integers(0, 1))
    with open_slide(layout) as slide, TiffSlide(layout) as tiff:
        width, height = slide.level_dimensions[level]
        x, y = data.draw(st.integers(-50, width)), data.draw(st.integers(-50, height))
        size = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
        page = tiff.find_page((width, height))
        plan = ReadPlan(level, size, tuple(2**level * length for length in size), page=page)
        corner = (x << level, y << level)
        expected = read_tile(slide, plan, *corner, size)
        np.testing.assert_array_equal(read_tile(tiff, plan, *corner, size), expected)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_region_is_close_to_the_mean_of_its_pixels(layout, reduction):
    with TiffSlide(layout) as tiff:
        page = tiff.find_page(SIZE)
        whole = tiff.read(page, (16, 32), (480, 320)).astype(float)
        reduced = tiff.read(page, (16, 32), (480, 320), reduction)
        is_jpeg2000 = tiff.is_jpeg2000(page)
    shape = (320 // reduction, reduction, 480 // reduction, reduction, 3)
    assert reduced.shape == (320 // reduction, 480 // reduction, 3)
    difference = np.abs(reduced - whole.reshape(shape).mean((1, 3))).mean()
    assert difference < (15 if is_jpeg2000 else 3)  # JPEG 2000 lies up to half a pixel off


def test_what_cannot_be_reduced_is_read_at_the_next_size(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", [tissue()])
    with TiffSlide(path) as tiff:
        page = tiff.find_page(SIZE)
        assert tiff.read(page, (0, 0), (100, 100), 8).shape == (25, 25, 3)
        assert tiff.read(page, (1, 0), (100, 100), 8).shape == (100, 100, 3)
        whole = tiff.read(page, (1, 0), (100, 100))
        np.testing.assert_array_equal(tiff.read(page, (1, 0), (100, 100), 8), whole)


def test_tiles_that_are_left_out_are_white(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", [tissue()], holes=(1, 5))
    with open_slide(path) as slide, TiffSlide(path) as tiff:
        page = tiff.find_page(SIZE)
        assert tiff.has_holes(page)
        plan = ReadPlan(0, SIZE, SIZE, page=page)
        pixels = read_tile(tiff, plan, 0, 0, SIZE)
        np.testing.assert_array_equal(pixels, read_tile(slide, plan, 0, 0, SIZE))
        assert (pixels[:, 10, 300] == 255).all()


def test_levels_that_it_does_not_read_say_why(tmp_path):
    path = tmp_path / "slide.tiff"
    tifffile.imwrite(path, tissue(), tile=(240, 240), compression="zlib", photometric="rgb")
    with TiffSlide(path) as tiff:
        with pytest.raises(Unsupported, match="compressed by ADOBE_DEFLATE"):
            tiff.find_page(SIZE)
        with pytest.raises(Unsupported, match="has the size of the level"):
            tiff.find_page((7, 7))
    path.write_bytes(b"no slide")
    with TiffSlide(path) as tiff, pytest.raises(Unsupported, match="not a TIFF"):
        tiff.find_page(SIZE)


def test_a_damaged_tile_is_told_and_its_neighbours_are_read(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", [tissue()])
    with tifffile.TiffFile(path) as tiff:
        offset, count = (
            part[1] for part in (tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts)
        )
    data = bytearray(path.read_bytes())
    data[offset + 200 : offset + count] = bytes(count - 200)
    path.write_bytes(data)
    with TiffSlide(path) as tiff:
        page = tiff.find_page(SIZE)
        with pytest.raises(openslide.OpenSlideError, match="tile 1 cannot be decoded"):
            tiff.read(page, (200, 0), (100, 100))
        assert tiff.read(page, (0, 0), (240, 240)).std() > 10
    path.write_bytes(data[: offset + 50])
    # A file that ends early has lost its directory too, or only some of its last tiles.
    with TiffSlide(path) as cut:
        cut._pages = tiff._pages
        with pytest.raises(openslide.OpenSlideError, match="beyond the end of the file"):
            cut.read(page, (480, 0), (100, 100))


def test_a_tile_of_more_bits_than_its_file_says_is_told(tmp_path, monkeypatch):
    deep = imagecodecs.jpeg2k_encode(tissue((240, 240)).astype(np.uint16) << 4, codecformat="j2k")
    monkeypatch.setitem(globals(), "encode", lambda *args: deep)
    path = write_tiff(tmp_path / "slide.tiff", [tissue((240, 240))], colours="j2k")
    with TiffSlide(path) as tiff:
        page = tiff.find_page((240, 240))
        with pytest.raises(openslide.OpenSlideError, match=r"tile 0 is uint16 \(240, 240, 3\)"):
            tiff.read(page, (0, 0), (240, 240))


def test_a_file_that_goes_bad_after_it_was_opened_is_told(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", [tissue()])
    with TiffSlide(path) as tiff:
        path.write_bytes(b"no slide")
        with pytest.raises(openslide.OpenSlideError, match="image 0 of the file: not a TIFF"):
            tiff.read(0, (0, 0), (100, 100))


FUZZED = {}


@settings(max_examples=60)
@given(
    colours=st.sampled_from(["ycbcr", "rgb", "j2k"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=30
    ),
    keep=st.floats(0.2, 1),
)
def test_no_bytes_take_the_process_with_them(tmp_path_factory, colours, changes, keep):
    if colours not in FUZZED:
        path = tmp_path_factory.mktemp("fuzz") / "slide.tiff"
        options = {"description": APERIO} if colours == "j2k" else {}
        write_tiff(path, [tissue((480, 480))], colours=colours, **options)
        FUZZED[colours] = path.read_bytes()
    data = bytearray(FUZZED[colours])
    for place, value in changes:
        data[int(place * len(data))] = value
    path = tmp_path_factory.mktemp("fuzz") / "slide.tiff"
    path.write_bytes(data[: int(keep * len(data))])
    plan, _ = prove(path, ReadPlan(0, (240, 240), (240, 240), 2), np.array([[0, 0], [200, 200]]))
    if plan.page is not None:
        with TiffSlide(path) as tiff:
            for corner in ((0, 0), (240, 0), (0, 240), (240, 240)):
                with contextlib.suppress(openslide.OpenSlideError):
                    assert tiff.read(plan.page, corner, (240, 240)).shape == (240, 240, 3)


@given(sizes=st.lists(st.integers(1, 50), min_size=1), limit=st.integers(50, 200))
def test_the_cache_keeps_what_was_used_last_within_its_limit(sizes, limit):
    cache, decoded = DecodedTiles(limit), []
    for number, size in enumerate(sizes):
        for _ in range(2):
            cache.get(
                (number,), lambda n=number, s=size: decoded.append(n) or np.zeros(s, np.uint8)
            )
        kept = [tile.nbytes for tile in cache._tiles.values()]
        assert sum(kept) == cache._bytes <= limit
    assert decoded == list(range(len(sizes)))


@pytest.mark.parametrize(
    ("mpp", "reduction", "read"),
    [(0.25, 2, 512), (0.2527, 2, 512), (0.5, 1, 256), (0.499, 1, 256), (0.125, 4, 1024)],
)
def test_a_plan_reads_a_multiple_of_its_reduction(tmp_path, mpp, reduction, read):
    path = write_tiff(tmp_path / "slide.tiff", [tissue()], mpp=mpp)
    with open_slide(path) as slide:
        plan = plan_reads(slide, path, mpp, 0.5, (256, 256))
    assert (plan.reduction, plan.read_size) == (reduction, (read, read))


def index(folder, path, **grid):
    grid = TileGrid(64, 64, min_tissue=0.0, min_sharpness=0.0, **grid)
    index = build_index(folder, grid, path.parent, workers=1)
    return index.records[0], index.load()[0]


def test_a_slide_is_read_by_its_own_tiles_once_they_are_proven(tmp_path):
    (tmp_path / "slides").mkdir()
    path = write_tiff(tmp_path / "slides" / "slide.tiff", [tissue()])
    record, slide = index(tmp_path / "index", path)
    assert record.reader == "tiff" and slide.plan.page == 0 and slide.plan.reduction == 2
    options = {"index_dir": str(tmp_path / "index"), "width": 64, "height": 64}
    options |= {"min_tissue": 0.0, "min_sharpness": 0.0, "n_val_tiles": 0}
    tiles = {}
    for reader in ("auto", "openslide"):
        dataset = TileDataset(str(path.parent), reader=reader, **options)
        dataset.setup()
        tiles[reader] = dataset
    pairs = [[tiles[name][n].float() for name in tiles] for n in range(len(tiles["auto"]))]
    assert len(pairs) > 10 and max((a - b).abs().mean() for a, b in pairs) < 2
    # Other pixels are other tiles: a cache of embeddings must not mix them.
    assert tiles["auto"].fingerprint() != tiles["openslide"].fingerprint()


def test_a_slide_whose_tiles_differ_is_left_to_openslide(tmp_path):
    """Its JPEGs say YCbCr by a JFIF marker, and its TIFF says RGB: OpenSlide believes the TIFF."""
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "slide.tiff"
    write_tiff(path, [tissue()], plain=True)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].tags["PhotometricInterpretation"].valueoffset
    path.write_bytes(data[:place] + b"\x02" + data[place + 1 :])
    record, slide = index(tmp_path / "index", path)
    assert slide.plan.page is None and "differs from OpenSlide's" in record.reader


@pytest.mark.parametrize("levels", [1, 2])
def test_an_overview_is_that_of_openslide(tmp_path, levels):
    quarter = np.asarray(Image.fromarray(tissue()).resize((250, 175), Image.Resampling.BOX))
    path = write_tiff(tmp_path / "slide.tiff", [tissue(), quarter][:levels])
    pixels, unreadable = read_overview(path, 0.25, 1.7)
    expected, _ = read_overview(path, 0.25, 1.7, reader="openslide")
    assert pixels.shape == expected.shape == (103, 147, 3) and not unreadable.any()
    assert np.abs(pixels.astype(int) - expected).mean() < 4


def test_damaged_parts_of_an_overview_are_marked(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", [tissue()])
    damage(path, 0, [0])
    unreadable = read_overview(path, 0.25, 1.0)[1]
    assert unreadable[0, 0] and unreadable.mean() < 0.2 and not unreadable[-1, -1]


def test_openslide_reads_what_it_is_asked_to(tmp_path):
    (tmp_path / "slides").mkdir()
    path = write_tiff(tmp_path / "slides" / "slide.tiff", [tissue()])
    record, slide = index(tmp_path / "index", path, reader="openslide")
    assert (record.reader, slide.plan.page) == ("openslide: READER", None)
    # Back again, the proof is made up for.
    assert index(tmp_path / "index", path)[1].plan.page == 0


def test_an_unknown_reader_is_told():
    with pytest.raises(UserError, match="is 'tiff'. Expected auto or openslide"):
        TileDataset("slides", reader="tiff")


def test_real_slides_are_read_by_their_own_tiles(real_slides, tmp_path):
    grid = TileGrid(overwrite_mpp=0.5)
    found = build_index(tmp_path / "index", grid, real_slides, workers=1)
    assert {record.reader for record in found.records} == {"tiff"}
