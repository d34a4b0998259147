import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from g2l_plugin.errors import UserError
from g2l_plugin.slides.image_set import ImageSet
from g2l_plugin.slides.image_source import ImageTiles, measure_images


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def make_set(files, mpp=0.5, patients=None):
    table = pd.DataFrame({"name": [f"{number}.png" for number in range(len(files))]})
    table = table.assign(patient=patients or "", centre="", mpp=mpp)
    return ImageSet(table, lambda number: io.BytesIO(files[number]), np.array([len(files)]))


def make_tiles(files, tile_size=8, target_mpp=0.5, max_lost=0.0, **options):
    images = make_set(files, **options)
    return ImageTiles(images, measure_images(images), tile_size, target_mpp, max_lost)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_is_divided_on_a_grid_in_its_middle():
    pixels = noise(27, 17)
    tiles = make_tiles([encode(noise(8, 8, 1)), encode(pixels)])
    assert len(tiles) == 1 + 3 * 2
    assert tiles.xy.tolist() == [[0, 0], [1, 0], [9, 0], [17, 0], [1, 8], [9, 8], [17, 8]]
    for number in range(1, 7):
        x, y = tiles.xy[number]
        expected = pixels[y : y + 8, x : x + 8].transpose(2, 0, 1)
        assert np.array_equal(tiles.read(number).numpy(), expected)
    located = tiles.locate(np.array([0, 4]))
    assert located["slide"].tolist() == ["0.png", "1.png"] and located["y"].tolist() == [0, 8]


def test_a_finer_image_is_resampled_as_tiles_of_slides_are():
    flat = np.full((32, 32, 3), 90, np.uint8)
    flat[:, 16:] = 200
    tiles = make_tiles([encode(flat)], mpp=0.25)
    assert len(tiles) == 4 and tiles.xy[3].tolist() == [16, 16]
    left, right = tiles.read(0).numpy(), tiles.read(1).numpy()
    assert left.shape == (3, 8, 8) and (left == 90).all() and (right == 200).all()


def test_scales_within_the_rounding_of_vendors_are_not_resampled():
    pixels = noise(8, 8)
    assert np.array_equal(
        make_tiles([encode(pixels)], mpp=0.499).read(0).numpy(), pixels.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 7), (7, 7, 7)),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("P", (8, 8)), (0, 0, 0)),
    ],
)
def test_other_colours_become_rgb(image, expected):
    tile = make_tiles([encode(image)]).read(0).numpy()
    assert tile.reshape(3, -1).T.tolist() == [list(expected)] * 64


def test_only_a_jpeg_of_exactly_one_tile_in_rgb_is_kept_as_it_is():
    one, grey = encode(noise(8, 8), "JPEG"), encode(Image.new("L", (8, 8)), "JPEG")
    files = [one, grey, encode(noise(8, 8)), encode(noise(16, 8), "JPEG")]
    tiles = make_tiles(files)
    assert [tiles.read_encoded(number) for number in range(5)] == [one, None, None, None, None]
    assert make_tiles([one], mpp=0.25, tile_size=4).read_encoded(0) is None


def test_a_damaged_image_is_counted_and_replaced_up_to_a_limit():
    files = [encode(noise(64, 64, seed), "JPEG") for seed in range(10)]
    files[9] = files[9][: len(files[9]) // 2]
    tiles = make_tiles(files, tile_size=64, max_lost=0.1)
    assert tiles.read_encoded(9) is None
    substitute = tiles.read(9).numpy()
    assert any(np.array_equal(substitute, tiles.read(number).numpy()) for number in range(9))
    assert tiles.lost().tolist() == [9]
    assert tiles.substitutes(np.arange(10)).tolist() == [False] * 9 + [True]
    with pytest.raises(UserError, match="1 of 10 tiles cannot be read.*9.png"):
        make_tiles(files, tile_size=64).read(9)


def test_kept_tiles_are_renumbered_with_their_images():
    pixels = [noise(16, 8, seed) for seed in range(3)]
    tiles = make_tiles([encode(p) for p in pixels], patients=["a", "b", "c"])
    tiles.keep(np.array([1, 4]))
    assert len(tiles) == 2 and tiles.group_sizes.sum() == 2
    assert np.array_equal(tiles.read(1).numpy(), pixels[2][:, :8].transpose(2, 0, 1))
    assert tiles.origins.patients[tiles.origins.of_tile].tolist() == ["a", "c"]
    assert tiles.origins.count()["images"] == 2


def test_the_fingerprint_is_of_names_and_places():
    files = [encode(noise(16, 16)), encode(noise(32, 16))]
    same, other = make_tiles(files), make_tiles(files[::-1])
    assert same.fingerprint() == make_tiles(files).fingerprint() != other.fingerprint()
    assert make_tiles(files, mpp=0.4, target_mpp=0.5).fingerprint() != same.fingerprint()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mpp": None}, r"resolution of 1 of 1 images is not known, e.g. of 0.png.*--mpp 0.5"),
        ({"mpp": 1.0}, r"Image 0.png was scanned at 1.000 microns per pixel, coarser than"),
        (
            {"tile_size": 9},
            r"1 of 1 images give no tile of 9 px .*e.g. 0.png of 8x8 px at 0.5",
        ),
    ],
)
def test_images_that_give_no_tiles_are_told(options, told):
    with pytest.raises(UserError, match=told):
        make_tiles([encode(noise(8, 8))], **options)


def test_files_that_are_no_images_are_left_out_up_to_a_limit(warned):
    files = [encode(noise(8, 8)), b"text"]
    with pytest.raises(UserError, match=r"1 of 2 images give no tile.*\(1 cannot be read\)"):
        make_tiles(files)
    tiles = make_tiles(files, max_lost=0.5)
    assert len(tiles) == 1 and any("1 of 2 images give no tile" in text for text in warned)
