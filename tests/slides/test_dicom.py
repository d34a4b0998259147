import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from g2l_plugin.slides.cohort import choose_cohort
from g2l_plugin.slides.dicom import series_of
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.slide import open_slide
from g2l_plugin.slides.tile_grid import TileGrid

TILE = 128
NUMBERS = itertools.count(1)


def element(group, number, kind, value, undefined=False):
    """An element in explicit VR little endian."""
    if isinstance(value, str):
        value = value.encode()
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    long = kind in ("OB", "SQ")
    length = 0xFFFFFFFF if undefined else len(value)
    header = struct.pack("<HH2s", group, number, kind.encode())
    return header + (struct.pack("<HI", 0, length) if long else struct.pack("<H", length)) + value


def sequence(group, number, *elements, undefined=False):
    item, end = b"".join(elements), b""
    if undefined:
        item += struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    header = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF if undefined else len(item))
    return element(group, number, "SQ", header + item + end, undefined)


def short(group, number, value):
    return element(group, number, "US", struct.pack("<H", value))


def long(group, number, value):
    return element(group, number, "UL", struct.pack("<I", value))


def encode(tile):
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=90, subsampling=1)
    return buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2)


def write_level(path, image, series, mpp, undefined=False):
    """Writes a level of a DICOM slide, with a sequence before the series that names another one."""
    height, width = image.shape[:2]
    corners = itertools.product(range(0, height, TILE), range(0, width, TILE))
    frames = [encode(image[y : y + TILE, x : x + TILE]) for y, x in corners]
    pixels = [b"", *frames]
    pixels = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(p)) + p for p in pixels)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    storage, instance = "1.2.840.10008.5.1.4.1.1.77.1.6", f"1.2.3.{next(NUMBERS)}"
    meta = b"".join(
        [
            element(2, 1, "OB", b"\0\1"),
            element(2, 2, "UI", storage),
            element(2, 3, "UI", instance),
            element(2, 0x10, "UI", "1.2.840.10008.1.2.4.50"),
        ]
    )
    spacing = element(0x28, 0x30, "DS", f"{mpp / 1000}\\{mpp / 1000}")
    data = b"".join(
        [
            element(8, 8, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
            element(8, 0x16, "UI", storage),
            element(8, 0x18, "UI", instance),
            element(8, 0x60, "CS", "SM"),
            sequence(8, 0x1115, element(0x20, 0xE, "UI", "9.9"), undefined=undefined),
            element(0x20, 0xD, "UI", "1.1"),
            element(0x20, 0xE, "UI", series),
            element(0x20, 0x52, "UI", f"{series}.1"),
            short(0x28, 2, 3),
            element(0x28, 4, "CS", "YBR_FULL_422"),
            short(0x28, 6, 0),
            element(0x28, 8, "IS", str(len(frames))),
            *(short(0x28, number, TILE) for number in (0x10, 0x11)),
            *(short(0x28, n, v) for n, v in ((0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0))),
            long(0x48, 6, width),
            long(0x48, 7, height),
            sequence(0x48, 0x105, element(0x48, 0x106, "SH", "1")),
            sequence(0x5200, 0x9229, sequence(0x28, 0x9110, spacing)),
            element(0x7FE0, 0x10, "OB", pixels, undefined=True),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    group = element(2, 0, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(b"\0" * 128 + b"DICM" + group + meta + data)
    return path


@pytest.fixture
def slides(tmp_path):
    """Four slides of three levels, a file each; the finest is not the first by name."""
    for number in range(4):
        rng = np.random.default_rng(number)
        image = np.array([214, 120, 170]) + rng.integers(-30, 30, (512, 512, 1))
        image = image.astype(np.uint8)
        for level, name in enumerate(["c", "a", "b"]):
            path = tmp_path / "slides" / f"{number}" / f"{name}.dcm"
            step = 2**level
            write_level(path, image[::step, ::step], f"1.5.{number}", 0.5 * step, level == 1)
    return tmp_path / "slides"


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_series_of_a_file_is_what_openslide_reads(slides, name):
    with open_slide(slides / "2" / f"{name}.dcm") as slide:
        assert slide.level_count == 3
        expected = slide.properties["dicom.SeriesInstanceUID"]
    assert series_of(slides / "2" / f"{name}.dcm") == expected == "1.5.2"


def test_a_series_is_one_slide(tmp_path, slides):
    cohort = choose_cohort(slides, n_slides=4)
    assert [slide.slide for slide in cohort] == [f"{n}/c.dcm" for n in range(4)]
    assert choose_cohort(slides, ["0/a.dcm", "0/c.dcm", "gone.dcm"]) == [
        cohort[0],
        *choose_cohort(slides, ["gone.dcm"]),
    ]
    index = build_index(tmp_path / "index", TileGrid(64, 64, min_sharpness=0), slides, n_slides=4)
    assert index.counts() == {"used": 4}


def test_a_level_0_that_arrives_later_is_looked_at(tmp_path, slides):
    level0 = (slides / "1" / "c.dcm").rename(tmp_path / "c.dcm")
    grid = TileGrid(64, 64, target_mpp=1.0, min_sharpness=0)
    before = build_index(tmp_path / "index", grid, slides).records[1]
    assert before.width == 256 and before.mpp == pytest.approx(1.0)
    level0.rename(slides / "1" / "c.dcm")
    after = build_index(tmp_path / "index", grid, slides).records[1]
    assert after.width == 512 and after.mpp == pytest.approx(0.5)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\0" * 128 + b"DICM\2\0", np.random.default_rng(0).bytes(999)],
    ids=["empty", "short", "only a preamble", "noise"],
)
def test_what_is_no_dicom_has_no_series(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    assert series_of(tmp_path / "a.dcm") == ""
