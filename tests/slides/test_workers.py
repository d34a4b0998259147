import errno
import gc
import os

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from garbage import left_to_this_process
from torch.utils.data import DataLoader

from g2l_plugin.errors import UserError
from g2l_plugin.slides.block_reader import BlockReader
from g2l_plugin.slides.workers import copy_rows, explain_dead_workers, read_blocks, start_workers


@pytest.mark.parametrize(
    "message",
    [
        "unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device"
        " (28)",
        "unable to open shared memory object </torch_7_1_0> in read-write mode: No space left on"
        " device (28)",
        "unable to resize file </torch_7_1_0> to the right size: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"
        " workers are out of shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_full_shared_memory_is_no_full_disk(message):
    with pytest.raises(UserError, match=r"/dev/shm, is full: .*--shm-size.*N_DATA_WORKERS"):  # noqa: SIM117
        with explain_dead_workers():
            raise RuntimeError(message)


def test_a_full_disk_is_not_explained_as_shared_memory():
    with pytest.raises(RuntimeError, match="^No space left on device$"):  # noqa: SIM117
        with explain_dead_workers():
            raise RuntimeError("No space left on device")


def test_rows_that_do_not_fit_into_shared_memory_say_so(monkeypatch):
    class Dataset:
        tile_shape = (3, 8, 8)

    def fail(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(UserError, match="/dev/shm, is full.*--shm-size"):
        BlockReader(Dataset(), 4, "spawn")
    assert len(BlockReader(Dataset(), 4, "fork").tiles) == 4


def test_queues_that_do_not_fit_into_shared_memory_say_so(monkeypatch):
    def fail(self):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(DataLoader, "__iter__", fail)
    code = errno.ENOSPC  # of a semaphore
    with pytest.raises(UserError, match="/dev/shm, is full.*--shm-size"):
        start_workers(DataLoader([1]))
    code = errno.EMFILE
    with pytest.raises(OSError, match=os.strerror(code)):
        start_workers(DataLoader([1]))


def test_a_batch_is_pinned_where_a_gpu_is_used_and_not_where_there_is_one(monkeypatch):
    tiles, rows = torch.arange(8, dtype=torch.uint8).view(4, 2, 1, 1), np.array([3, 1])
    with fake_cuda(monkeypatch):  # which knows what is pinned, and needs no driver
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        pinned = []
        for is_used in (False, True):
            monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=is_used: used)
            batch = copy_rows(tiles, rows)
            assert batch.flatten().tolist() == [6, 7, 2, 3]
            pinned.append(batch.is_pinned())
    assert pinned == [False, True]


def test_the_garbage_of_this_process_is_not_finalized_in_its_workers(tmp_path):
    class Dataset:
        tile_shape = (3, 1, 1)

        def read_into(self, tile, out):
            gc.collect()
            out[:] = tile

    with left_to_this_process(tmp_path / "finalized"):
        tiles = [block.unique().tolist() for block in read_blocks(Dataset(), [np.arange(2)], 1)]
    assert tiles == [[0, 1]]
