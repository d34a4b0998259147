"""Colour jitter and blur of a batch of images, with a separate amount for each image.

The arithmetic is that of torchvision (`torchvision.transforms.v2.functional`, on floats), which
accepts only one amount for all images. It is written here in elementary operations (sum, product,
comparison), each rounded once, in an order that depends on the shape of one image only. So the
result for an image is equal, bit for bit, in every batch. For the same reason there is no `mean`,
no `conv2d` and no `add(alpha=...)`.

All `adjust_` functions change images in [0, 1], float32 (N, 3, H, W), in place, and leave them in
[0, 1]. Nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grey, as in torchvision (ITU-R BT.601)."""


def adjust_brightness(images: torch.Tensor, factors: torch.Tensor) -> None:
    """Multiplies each image by a factor.

    Args:
        images: (N, 3, H, W), changed in place.
        factors: (N,), 0 for black, 1 for no change.
    """
    images.mul_(_per_image(factors)).clamp_(0, 1)


def adjust_contrast(images: torch.Tensor, factors: torch.Tensor) -> None:
    """Blends each image with its mean grey.

    Args:
        images: (N, 3, H, W), changed in place.
        factors: (N,), 0 for uniform grey, 1 for no change.
    """
    mean = _mean_in_fixed_order(_grayscale(images))
    images.mul_(_per_image(factors)).add_(_per_image((1 - factors) * mean)).clamp_(0, 1)


def adjust_saturation(images: torch.Tensor, factors: torch.Tensor) -> None:
    """Blends each image with its grey levels.

    Args:
        images: (N, 3, H, W), changed in place.
        factors: (N,), 0 for grey levels only, 1 for no change.
    """
    gray = _grayscale(images).mul_(_per_image(1 - factors))
    images.mul_(_per_image(factors)).add_(gray).clamp_(0, 1)


def adjust_hue(images: torch.Tensor, shifts: torch.Tensor) -> None:
    """Shifts the hue of each image; value and chroma stay.

    The hue is an angle in [0, 6): red 0, green 2, blue 4. A channel has the pixel's largest value
    up to a distance of 1 from its own angle, the smallest from 2 on, and is linear in between.

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
        weights: Weights of the middle pixel and of the pixels at distances 1, ..., R, (N, R + 1);
            (N, 1) changes nothing. The middle plus twice the others is 1.

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
    """Reshapes one value per image, (N,), to (N, 1, 1, 1)."""
    return values[:, None, None, None]


def _grayscale(images: torch.Tensor) -> torch.Tensor:
    """Grey of each pixel, (N, 1, H, W)."""
    red, green, blue = (images[:, channel : channel + 1] for channel in range(3))
    return (red * _GRAY[0]).add_(green * _GRAY[1]).add_(blue * _GRAY[2])


def _mean_in_fixed_order(images: torch.Tensor) -> torch.Tensor:
    """Mean of each image, (N,), by repeatedly adding one half to the other; overwrites `images`.

    The order of summation in `torch.mean` depends on the batch and on the number of threads.
    """
    values = images.flatten(1)
    n = length = values.shape[1]
    while length > 1:
        half = length // 2
        values[:, :half].add_(values[:, length - half : length])
        length -= half
    return values[:, 0] / n
