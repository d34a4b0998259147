import numpy as np
import pytest
from scipy import ndimage
from skimage import segmentation

from g2l_plugin.slides import tissue
from g2l_plugin.slides.slide import open_slide, plan_reads, read_tile

GLASS, PINK, PURPLE = (243, 242, 244), (214, 120, 170), (110, 60, 140)


def picture(*squares):
    """Glass with one square per colour, 40 pixels wide, side by side."""
    image = np.full((60, 60 * max(len(squares), 1), 3), GLASS, np.uint8)
    for number, colour in enumerate(squares):
        image[10:50, 60 * number + 10 : 60 * number + 50] = colour
    return image


def tissue_mask(overview):
    return tissue.tissue_mask(tissue.to_hsv(overview))


def ink_mask(overview):
    return tissue.ink_mask(tissue.to_hsv(overview))


def test_stained_tissue_is_tissue_and_glass_is_not():
    mask = tissue_mask(picture(PINK, PURPLE))
    assert mask[15:45, 15:45].all() and mask[15:45, 75:105].all()
    assert not mask[:5].any()
    assert not tissue_mask(picture()).any()


def test_a_slide_full_of_tissue_is_all_tissue():
    assert tissue_mask(np.full((50, 50, 3), PINK, np.uint8)).all()


@pytest.mark.parametrize(
    ("colour", "noise"),
    [((0, 0, 0), 0), ((4, 2, 6), 3), ((6, 3, 3), 2), ((4, 4, 9), 2), ((12, 7, 12), 3)],
)
def test_near_black_outside_of_the_scan_is_not_tissue(colour, noise):
    image = np.full((64, 128, 3), PINK, float)
    image[:, 64:] = colour + np.random.default_rng(0).normal(0, noise, (64, 64, 3))
    mask = tissue_mask(np.clip(image, 0, 255).astype(np.uint8))
    assert mask[:, :63].all() and not mask[:, 64:].any()
    assert not tissue_mask(np.clip(image[:, 64:], 0, 255).astype(np.uint8)).any()


@pytest.mark.parametrize("colour", [(226, 150, 190), (70, 45, 35), (95, 40, 120), (190, 42, 60)])
def test_pigment_blood_and_dense_nuclei_are_tissue(colour):
    assert tissue_mask(picture(colour))[15:45, 15:45].all()


def test_what_is_as_grey_as_glass_is_not_tissue():
    faded = tuple(round(250 - (250 - channel) * 0.12) for channel in PINK)
    pale_counterstain = (222, 226, 230)
    assert not tissue_mask(picture(faded, pale_counterstain)).any()


def test_blue_counterstain_is_taken_for_ink():
    assert ink_mask(picture((100, 125, 170)))[15:45, 15:45].all()


@pytest.mark.parametrize(
    "ink", [(20, 120, 60), (30, 60, 190), (25, 25, 28), (215, 25, 35), (10, 150, 160)]
)
def test_ink_is_distinguished_from_stain(ink):
    mask = ink_mask(picture(PINK, ink, PURPLE))
    assert mask[15:45, 75:105].all()
    assert not mask[:, :55].any() and not mask[:, 125:].any()


def test_an_outline_is_what_touches_the_outside_by_scikit_image():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((80, 60)), 2) > 0
    expected = segmentation.find_boundaries(mask, mode="inner")
    assert mask.any() and expected.any() and np.array_equal(tissue.outline(mask), expected)


def test_what_is_grey_has_shades_and_no_colour():
    shades = np.arange(60, dtype=np.uint8).reshape(6, 10, 1).repeat(3, axis=2)
    assert tissue.is_grey(shades)
    assert not tissue.is_grey(np.full((6, 10, 3), 200, np.uint8))
    shades[5, 9, 2] += 1
    assert not tissue.is_grey(shades)


def textured(sigma, contrast=60.0):
    rng = np.random.default_rng(0)
    nuclei = ndimage.gaussian_filter(rng.standard_normal((512, 512)), 3)
    grain = ndimage.gaussian_filter(rng.standard_normal((512, 512)), 0.8)
    grey = nuclei / nuclei.std() + 0.7 * grain / grain.std()
    if sigma:
        grey = ndimage.gaussian_filter(grey, sigma)
    return np.clip(150 + contrast * grey / 3, 0, 255).astype(np.uint8)[None].repeat(3, 0)


def test_sharpness_falls_with_blur_at_any_contrast():
    values = [tissue.sharpness(textured(sigma), 0.5) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 < values[0]
    assert tissue.sharpness(textured(0, 25.0), 0.5) == pytest.approx(values[0], rel=0.1)
    assert tissue.sharpness(np.full((3, 64, 64), 200, np.uint8), 0.5) == 0


def test_real_tissue_is_sharp_and_blurred_is_not(real_slides):
    path = real_slides / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        plan = plan_reads(slide, path, 0.499, 0.5, (256, 256))
        pixels = read_tile(slide, plan, 1000, 1500, (256, 256))
    assert tissue.sharpness(pixels, 0.499) > 0.2
    blurred = ndimage.gaussian_filter(pixels, (0, 4, 4))
    assert tissue.sharpness(blurred, 0.499) < 0.1
