import pytest
import torch

from g2l_plugin.distillation.running.atomic_checkpoint import (
    AtomicCheckpointIO,
    CheckpointWriteError,
)
from g2l_plugin.runs import checkpoints as checkpoint_io
from g2l_plugin.runs.checkpoints import find_damage, list_checkpoints, newest_whole, step_file

STATE = {"weights": torch.arange(1000.0), "step": 3}


def full_disk(state, path):
    """Writes a part, then fails as torch does."""
    path.write_bytes(b"PK")
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def write(run, *names):
    for name in names:
        AtomicCheckpointIO().save_checkpoint(STATE, run / "checkpoints" / name)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, "step=00000003.ckpt")
    path = tmp_path / "checkpoints" / "step=00000003.ckpt"
    assert find_damage(path) is None
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weights"], STATE["weights"])


@pytest.mark.parametrize("error", [full_disk, OSError(28, "No space left on device")])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, error):
    write(tmp_path, "last.ckpt")
    path = tmp_path / "checkpoints" / "last.ckpt"
    before = path.read_bytes()

    def fail(state, partial):
        if isinstance(error, OSError):
            raise error
        error(state, partial)

    monkeypatch.setattr(checkpoint_io.torch, "save", fail)
    with pytest.raises(CheckpointWriteError, match=r"last.ckpt cannot be written: .*Make room"):
        AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.999])
def test_every_damage_is_found(tmp_path, place):
    write(tmp_path, "last.ckpt")
    path = tmp_path / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * place)])
    assert find_damage(path)
    start = whole.index(STATE["weights"].numpy().tobytes())
    flipped = bytearray(whole)
    flipped[start + int(3999 * place)] ^= 1
    path.write_bytes(flipped)
    assert "checksum" in find_damage(path) or "CRC" in find_damage(path)


def test_the_newest_is_the_last_and_then_that_of_the_highest_step(tmp_path):
    assert list_checkpoints(tmp_path) == [] and newest_whole(tmp_path) is None
    write(tmp_path, step_file(5), step_file(40), "step=7.ckpt.part", "best.ckpt")
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step=00000040.ckpt", "step=00000005.ckpt"]
    write(tmp_path, "last.ckpt")
    assert newest_whole(tmp_path).name == "last.ckpt"


def test_damaged_ones_are_passed_over(tmp_path):
    write(tmp_path, *map(step_file, (1, 2, 3)))
    for step in (2, 3):
        (tmp_path / "checkpoints" / step_file(step)).write_bytes(b"")
    assert newest_whole(tmp_path).name == step_file(1)
