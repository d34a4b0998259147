"""Colour jitter and blur of many images at once, each by its own amount.

The arithmetic is torchvision's (`torchvision.transforms.v2.functional`, on floats), which takes one
amount for all images. Every step here is an addition, a product, a comparison and the like, rounded
once, in an order that depends on an image's own shape alone: so an image comes out the same, bit
for bit, in whatever batch it is. That is why there is no `mean`, no `conv2d`, no `add(alpha=...)`.

All `adjust_` functions change images in [0, 1], float32 (N, 3, H, W), in place, and leave them in
[0, 1]. Nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_GRAY = (0.2989, 0.587, 0.114)
"""Share of red, green and blue in an image's grey, as in torchvision (ITU-R BT.601)."""


def adjust_brightness(images: torch.Tensor, factors: torch.Tensor) -> None:
    """Multiplies each image.

    Args:
        images: (N, 3, H, W), changed in place.
        factors: (N,), 0 makes black, 1 leaves the image.
    """
    images.mul_(_per_image(factors)).clamp_(0, 1)


def adjust_contrast(images: torch.Tensor, factors: torch.Tensor) -> None:
    """Blends each image with its mean grey.

    Args:
        images: (N, 3, H, W), changed in place.
        factors: (N,), 0 makes grey, 1 leaves the image.
    """
    mean = _mean_in_fixed_order(_grayscale(images))
    images.mul_(_per_image(factors)).add_(_per_image((1 - factors) * mean)).clamp_(0, 1)


def adjust_saturation(images: torch.Tensor, factors: torch.Tensor) -> None:
    """Blends each image with its greys.

    Args:
        images: (N, 3, H, W), changed in place.
        factors: (N,), 0 makes black and white, 1 leaves the image.
    """
    gray = _grayscale(images).mul_(_per_image(1 - factors))
    images.mul_(_per_image(factors)).add_(gray).clamp_(0, 1)


def adjust_hue(images: torch.Tensor, shifts: torch.Tensor) -> None:
    """Turns the hue of each image; value and chroma stay.

    The hue is an angle in [0, 6): red 0, green 2, blue 4. A channel is at the image's largest value
    within 1 of its own angle, at the smallest from 2 on, and linear between.

    Args:
        images: (N, 3, H, W), changed in place.
        shifts: (N,), in turns, [-0.5, 0.5].
    """
    red, green, blue = images.unbind(1)
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - low
    is_red, is_green = high == red, high == green
    hue = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    hue.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny))
    hue.add_(torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)))
    hue.add_(6 * shifts[:, None, None])
    hue.sub_(torch.floor(hue / 6).mul_(6))

    red_part = (hue - 3).abs_().sub_(1)
    green_part = (hue - 2).abs_().neg_().add_(2)
    blue_part = hue.sub_(4).abs_().neg_().add_(2)
    for plane, part in ((red, red_part), (green, green_part), (blue, blue_part)):
        torch.add(part.clamp_(0, 1).mul_(chroma), low, out=plane)


def gaussian_blur(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Blurs each image along both axes; the border is mirrored.

    Args:
        images: float32 in [0, 1], (N, 3, H, W); sides of more than R pixels.
        weights: Of the middle pixel and of those 1, ..., R pixels beside it, (N, R + 1), or
            (N, 1) to change nothing; a middle and twice its sides add up to 1.

    Returns:
        Blurred images in [0, 1], (N, 3, H, W).
    """
    radius = weights.shape[1] - 1
    images = functional.pad(images, [radius] * 4, mode="reflect")
    for dim in (-1, -2):
        length = images.shape[dim] - 2 * radius
        blurred = images.narrow(dim, radius, length) * _per_image(weights[:, 0])
        for distance in range(1, radius + 1):
            before = images.narrow(dim, radius - distance, length)
            after = images.narrow(dim, radius + distance, length)
            blurred.add_((before + after).mul_(_per_image(weights[:, distance])))
        images = blurred
    return images.clamp_(0, 1)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    """One value for each image, (N,), as (N, 1, 1, 1)."""
    return values[:, None, None, None]


def _grayscale(images: torch.Tensor) -> torch.Tensor:
    """The grey of each pixel, (N, 1, H, W)."""
    red, green, blue = (images[:, channel : channel + 1] for channel in range(3))
    return (red * _GRAY[0]).add_(green * _GRAY[1]).add_(blue * _GRAY[2])


def _mean_in_fixed_order(images: torch.Tensor) -> torch.Tensor:
    """The mean of each image, (N,), by adding one half to the other; `images` are used up.

    `torch.mean` adds in an order that depends on the batch and on the number of threads.
    """
    values = images.flatten(1)
    n = length = values.shape[1]
    while length > 1:
        half = length // 2
        values[:, :half].add_(values[:, length - half : length])
        length -= half
    return values[:, 0] / n
