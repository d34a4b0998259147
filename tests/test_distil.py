import pytest

from g2l_plugin import AugmentedView, DemoTiles, EncoderSource, UserError, distil


def test_a_student_that_is_not_published_is_an_error_that_says_why(tmp_path):
    tiles = {"root": str(tmp_path / "demo"), "slides": "train", "labelled": False, "n_slides": 1}
    network = {"img_size": 56, "patch_size": 8, "embed_dim": 96, "depth": 1, "num_heads": 3}
    with pytest.raises(UserError, match=r"further from its teacher.*g2l publish --force"):
        distil(
            teacher="demo:teacher",
            student=EncoderSource(
                "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=network
            ),
            tiles=DemoTiles(**tiles),
            val_tiles=DemoTiles(**tiles, max_tiles=64),
            output=tmp_path / "logs",
            view=AugmentedView(56),
            max_steps=4,
            lr=2.0,
            num_workers=0,
        )
    assert list(tmp_path.glob("logs/*/run_0/checkpoints/last.ckpt"))
    assert not list(tmp_path.glob("logs/*/run_0/student"))
