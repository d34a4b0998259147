"""Each adjustment is compared with torchvision's, which accepts one amount for all images."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from g2l_plugin.slides import color

ADJUSTMENTS = {
    "brightness": (color.adjust_brightness, functional.adjust_brightness, [0.0, 0.7, 1.0, 1.6]),
    "contrast": (color.adjust_contrast, functional.adjust_contrast, [0.0, 0.7, 1.0, 1.6]),
    "saturation": (color.adjust_saturation, functional.adjust_saturation, [0.0, 0.7, 1.0, 1.6]),
    "hue": (color.adjust_hue, functional.adjust_hue, [-0.5, -0.05, 0.0, 0.31]),
}


@pytest.fixture
def images():
    images = torch.rand(4, 3, 23, 17, generator=torch.Generator().manual_seed(0))
    images[:, :, :2] = images[:, :1, :2]  # greys have no hue
    return images


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_an_adjustment_agrees_with_torchvision(images, name):
    adjust, reference, amounts = ADJUSTMENTS[name]
    expected = torch.cat(
        [reference(image[None], amount) for image, amount in zip(images, amounts, strict=True)]
    )
    adjust(images, torch.tensor(amounts))
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)


def test_blur_agrees_with_torchvision(images):
    sigmas = torch.tensor([0.1, 0.5, 1.3, 2.0])
    weights = torch.exp(-0.5 * (torch.arange(5) / sigmas[:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdim=True)
    expected = torch.cat(
        [
            functional.gaussian_blur(image[None], [9, 9], [sigma, sigma])
            for image, sigma in zip(images, sigmas.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(color.gaussian_blur(images, weights), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_an_image_is_adjusted_equally_in_any_batch(images, name):
    adjust, _, amounts = ADJUSTMENTS[name]
    alone = [image[None].clone() for image in images]
    for image, amount in zip(alone, amounts, strict=True):
        adjust(image, torch.tensor([amount]))
    adjust(images, torch.tensor(amounts))
    assert torch.equal(images, torch.cat(alone))
