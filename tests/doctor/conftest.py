import pytest

from g2l_plugin.doctor.settings import Model, Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    """The recipe's defaults, with folders of the test."""
    return Settings(
        teachers=(Model("TEACHER", "hf-hub:bioptimus/H-optimus-0", dtype="bfloat16"),),
        student=Model("STUDENT", "hf-hub:histai/hibou-L"),
        batch_size=32,
        micro_batch_size=None,
        devices=1,
        accelerator="auto",
        precision="bf16-mixed",
        tile_size=256,
        buffer_tiles=8192,
        workers=8,
        n_slides=1000,
        output_root=tmp_path / "logs",
        index_root=tmp_path / "index",
        slides_root=tmp_path / "slides",
        slides=None,
        overwrite_mpp=None,
        packed_root=None,
        teacher_cache=None,
    )
