import pytest
from helpers import save_tiny_model

from g2l_plugin import UserError, load_encoder
from g2l_plugin.distillation.running import sharded_teachers


@pytest.mark.parametrize("loaded", [["a", "a"], ["a", "b"]])
def test_devices_that_loaded_different_teachers_do_not_share_them(monkeypatch, tmp_path, loaded):
    encoder = load_encoder(f"local-dir:{save_tiny_model(tmp_path / 'tiny', depth=2)}")

    def gather(found, own):
        assert own == encoder.provenance.sha256
        found[:] = loaded

    parts = []
    monkeypatch.setattr(sharded_teachers.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(sharded_teachers.dist, "all_gather_object", gather)
    monkeypatch.setattr(sharded_teachers, "init_device_mesh", lambda *place: place)
    monkeypatch.setattr(sharded_teachers, "fully_shard", lambda part, **_: parts.append(part))
    if loaded == ["a", "a"]:
        sharded_teachers.shard(encoder)
        assert parts == [*encoder.model.blocks, encoder]
    else:
        with pytest.raises(UserError, match="have different weights of .*Give all the same file"):
            sharded_teachers.shard(encoder)
        assert not parts
