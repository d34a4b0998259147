import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from g2l_plugin import cli
from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.evaluation.invariance import CHANGES, STAIN_SIGMA, embed_changed
from g2l_plugin.metrics.invariance import measure_invariance


def encoder_of(network):
    network.num_features = 4
    network.bias = nn.Parameter(torch.zeros(1))
    encoder = Encoder(
        network, mean=[0.0] * 3, std=[1.0] * 3, provenance=Provenance("timm:x", pretrained=False)
    )
    encoder.input_size = (32, 32)
    return encoder


class Pixels(nn.Module):
    """The image itself as its embedding."""

    def forward(self, images):
        return images.flatten(1)


class Symmetric(nn.Module):
    """Means and variances of the colours: the same however the image is turned."""

    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.var((2, 3))], dim=1)


@pytest.fixture
def tiles():
    generator = np.random.default_rng(0)
    coarse = generator.uniform(60, 230, (12, 8, 8, 3)).astype(np.uint8)
    images = [Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in coarse]
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]


def embed(encoder, tiles, **settings):
    return embed_changed(encoder.eval(), tiles, 32, **settings)


def test_the_changes_are_those_of_their_names_by_pillow(tiles):
    plain, changed = embed(encoder_of(Pixels()), tiles, batch_size=5)
    assert tuple(sorted(changed)) == tuple(sorted(CHANGES))
    for row, tile in enumerate(tiles):
        image = Image.fromarray(tile.permute(1, 2, 0).numpy())

        def compressed(quality, image=image):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            return Image.open(file)

        expected = {
            "rotated by 90°": image.rotate(90),
            "rotated by 180°": image.rotate(180),
            "rotated by 270°": image.rotate(270),
            "flipped horizontally": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "flipped vertically": image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            "JPEG at quality 75": compressed(75),
            "JPEG at quality 50": compressed(50),
            "blurred, sigma 1 px": image.filter(ImageFilter.GaussianBlur(1)),
            "half the resolution and back": image.resize(
                (16, 16), Image.Resampling.BILINEAR
            ).resize((32, 32), Image.Resampling.BILINEAR),
        }
        for name, pillow in expected.items():
            ours = changed[name][row].reshape(3, 32, 32).transpose(1, 2, 0) * 255
            # Pillow's blur is three box filters, and its JPEG and resizing round.
            largest = 12 if "blurred" in name else 4
            assert np.abs(ours - np.asarray(pillow)).max() < largest, name
        np.testing.assert_allclose(plain[row].reshape(3, 32, 32), tile.numpy() / 255, atol=1e-6)


def test_an_encoder_that_ignores_orientation_is_invariant_to_it_and_not_to_stain(tiles):
    _, found = measure_invariance(*embed(encoder_of(Symmetric()), tiles), device="cpu")
    for name in CHANGES[:5]:
        assert found[name].cosine == pytest.approx(1) and found[name].nearest == 1
    assert found["HED jitter"].relative < 0.9
    _, found = measure_invariance(*embed(encoder_of(Pixels()), tiles), device="cpu")
    assert all(abs(found[name].relative) < 0.3 for name in CHANGES[:5])


def test_the_stains_depend_on_the_seed_and_not_on_the_batches(tiles):
    encoder = encoder_of(Pixels())
    (_, one), (_, other), (_, seeded) = (
        embed(encoder, tiles, batch_size=size, seed=seed)
        for size, seed in ((3, 0), (12, 0), (3, 1))
    )
    np.testing.assert_allclose(one["HED jitter"], other["HED jitter"], atol=1e-6)
    assert np.abs(one["HED jitter"] - seeded["HED jitter"]).max() > STAIN_SIGMA / 10


def save(tiles, folder):
    folder.mkdir()
    for number, tile in enumerate(tiles):
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")


def test_the_command_prints_a_table_a_model_and_writes_all_values(tiles, tmp_path, capsys):
    save(tiles, tmp_path / "tiles")
    output = tmp_path / "invariance.csv"
    arguments = ["--tiles", str(tmp_path / "tiles"), "--output", str(output), "--max-tiles", "3"]
    assert cli.main(["invariance", "demo:teacher", *arguments]) == 0
    out = capsys.readouterr().out
    assert "demo:teacher: 3 tiles of " in out and f"Values: {output}" in out
    table = pd.read_csv(output)
    assert list(table["change"]) == list(CHANGES) and set(table["n_tiles"]) == {3}
    assert table["cosine"].between(-1, 1).all() and table["nearest"].between(0, 1).all()
    manifest = tmp_path / "manifest.csv"
    rows = [{"path": f"tiles/{number:02}.png", "label": number % 2} for number in range(12)]
    pd.DataFrame(rows).to_csv(manifest, index=False)
    again = tmp_path / "again.csv"
    arguments = ["--tiles", str(manifest), "--output", str(again), "--max-tiles", "3"]
    assert cli.main(["invariance", "demo:teacher", *arguments]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(again), table)


def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(
    tiles, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save(tiles[:2], tmp_path / "tiles")
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        (["demo:teacher", "--tiles", "empty"], "error: empty holds no images."),
        (["demo:teacher", "--tiles", "tiles", "--max-tiles", "0"], "error: --max-tiles is 0."),
        (["demo:teacher", "--tiles", "tiles", "--max-tiles", "1"], "error: Got 1 tile."),
        (["no model", "--tiles", "tiles"], "error: Unknown model 'no model'."),
    ):
        assert cli.main(["invariance", *arguments]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
    (tmp_path / "tiles" / "00.png").write_bytes(b"no image")
    assert cli.main(["invariance", "demo:teacher", "--tiles", "tiles"]) == 1
    assert "00.png cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "invariance.csv").exists()
