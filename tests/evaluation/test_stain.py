import numpy as np
import torch
from skimage.color import combine_stains, hed_from_rgb, rgb_from_hed, separate_stains

from g2l_plugin.evaluation.stain import StainChange


def test_stains_are_separated_as_scikit_image_does():
    unmixing = torch.from_numpy(hed_from_rgb).float()
    ours = StainChange().unmixing
    for mine, theirs in zip(ours.T, unmixing.T, strict=True):  # its stains are not of length 1
        assert torch.cosine_similarity(mine, theirs, dim=0) > 0.999


def test_more_of_each_stain_is_what_scikit_image_mixes():
    generator = np.random.default_rng(0)
    # Images that hold the three stains only: scikit-image cuts negative amounts off.
    amounts = generator.uniform(0.0, 0.02, (2, 8, 8, 3))
    factors = np.array([[1.3, 0.8, 1.0], [0.7, 1.2, 1.1]])
    image = combine_stains(amounts, rgb_from_hed)
    expected = combine_stains(
        separate_stains(image, hed_from_rgb) * factors[:, None, None], rgb_from_hed
    )
    tensor = torch.from_numpy(image).float().permute(0, 3, 1, 2)
    changed = StainChange()(tensor, torch.from_numpy(factors).float(), torch.zeros(2, 3))
    np.testing.assert_allclose(changed.permute(0, 2, 3, 1).numpy(), expected, atol=2e-3)
    assert abs(expected - image).max() > 0.02


def test_an_image_survives_the_way_there_and_back():
    images = torch.rand(4, 3, 8, 8) * 0.99 + 0.01
    same = StainChange()(images, torch.ones(4, 3), torch.zeros(4, 3))
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)
