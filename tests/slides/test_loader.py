import itertools
import os
import signal

import numpy as np
import pytest
import torch

from g2l_plugin.errors import UserError
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.in_order import some_batches
from g2l_plugin.slides.loader import TileLoader
from g2l_plugin.slides.slide_source import SlideTiles


class NumberedTiles(TileDataset):
    """Tiles whose pixels hold their number."""

    tile_shape = (3, 1, 1)

    def __init__(self, group_sizes):
        super().__init__("")
        self._tiles = SlideTiles([], (1, 1))
        self._tiles.slide_of_tile = np.repeat(np.arange(len(group_sizes)), group_sizes)
        self._tiles.group_of_tile = self._tiles.slide_of_tile
        self._tiles.paths = list(range(len(group_sizes)))
        self._tiles.xy = np.zeros((sum(group_sizes), 2), np.int32)
        self._tiles.keep(np.arange(sum(group_sizes)))

    def __getitem__(self, index):
        return torch.tensor([[[index % 256]], [[index // 256]], [[0]]], dtype=torch.uint8)


def numbers(batch):
    assert isinstance(batch, TileBatch)
    tiles = batch.tiles
    shown = (tiles[:, 0, 0, 0].int() + 256 * tiles[:, 1, 0, 0].int()).tolist()
    assert batch.numbers.tolist() == shown and batch.numbers.dtype == np.int64
    return shown


def make_loader(sizes=(300, 5, 0, 120, 200, 77), **options):
    options = {"batch_size": 16, "block_tiles": 8, "buffer_tiles": 100} | options
    return TileLoader(NumberedTiles(list(sizes)), **options)


def epoch(loader, number=0):
    loader.set_epoch(number)
    return [numbers(batch) for batch in loader]


def test_an_epoch_has_every_tile_once():
    batches = epoch(make_loader(drop_last=False))
    assert sorted(itertools.chain(*batches)) == list(range(702))
    assert [len(batch) for batch in batches] == [16] * 43 + [14]
    loader = make_loader()
    batches = epoch(loader)
    assert len(batches) == len(loader) == 43
    assert len(set(itertools.chain(*batches))) == 43 * 16


@pytest.mark.parametrize(("workers", "ahead"), [(1, 2), (2, 1), (2, 7)])
def test_the_order_does_not_depend_on_the_workers(workers, ahead):
    alone = make_loader()
    others = make_loader(num_workers=workers, persistent_workers=True, prefetch_factor=ahead)
    for number in range(2):
        assert epoch(others, number) == epoch(alone, number)


def test_workers_that_are_not_forked_read_the_same_tiles(tmp_path, write_slide):
    write_slide(tmp_path / "slides" / "slide.tiff")
    options = {"index_dir": str(tmp_path / "index"), "width": 64, "height": 64}
    dataset = TileDataset(str(tmp_path / "slides"), n_val_tiles=0, **options)
    dataset.prepare_data()
    dataset.setup()
    alone = [batch.tiles for batch in TileLoader(dataset, 8)]
    spawned = TileLoader(dataset, 8, num_workers=1, multiprocessing_context="spawn")
    for batch, expected in zip(spawned, alone, strict=True):
        assert torch.equal(batch.tiles, expected)


def test_an_epoch_that_is_left_does_not_disturb_the_next():
    loader = make_loader(num_workers=2)
    for _ in range(3):
        next(iter(loader))
    assert epoch(loader, 1) == epoch(make_loader(), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tile_of_another_shape_is_told(monkeypatch, workers):
    monkeypatch.setattr(NumberedTiles, "tile_shape", (3, 2, 2))
    with pytest.raises(UserError, match=r"is of \(3, 1, 1\), expected .*\(3, 2, 2\)"):
        epoch(make_loader(num_workers=workers))


def test_the_order_depends_on_seed_and_epoch():
    orders = {
        tuple(itertools.chain(*epoch(make_loader(seed=seed), number)))
        for seed in range(3)
        for number in range(3)
    }
    assert len(orders) == 9
    assert epoch(make_loader(seed=1), 2) == epoch(make_loader(seed=1), 2)


def test_few_tiles_fit_into_one_buffer():
    assert sorted(itertools.chain(*epoch(make_loader((7, 3), drop_last=False)))) == list(range(10))
    assert epoch(make_loader((7,))) == []


@pytest.mark.parametrize("batches", [0, 1, 20, 42])
def test_a_resumed_epoch_continues_where_it_stopped(batches):
    loader = make_loader(num_workers=1, prefetch_factor=2)
    loader.set_epoch(3)
    iterator = iter(loader)
    seen = [numbers(next(iterator)) for _ in range(batches)]
    state = loader.state_dict() if batches else {"epoch": 3, "batches": 0}
    place = {"epoch": 3, "batches": batches} | ({"devices": 1} if batches else {})
    assert state.items() >= place.items()
    resumed = make_loader()
    resumed.load_state_dict(state)
    expected = epoch(make_loader(), 3)
    assert seen + epoch(resumed, 3) == expected
    assert epoch(resumed, 4) == epoch(make_loader(), 4)


def test_at_the_end_of_an_epoch_the_next_begins():
    loader = make_loader()
    epoch(loader, 3)
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    # Whatever Lightning counts: it may or may not count the epoch in which a run ended.
    assert epoch(resumed, 3) == epoch(make_loader(), 4)
    assert epoch(resumed, 7) == epoch(make_loader(), 5)


def test_epochs_advance_without_set_epoch():
    loader = make_loader()
    orders = [[numbers(batch) for batch in loader] for _ in range(3)]
    assert orders == [epoch(make_loader(), number) for number in range(3)]


@pytest.mark.parametrize("n_devices", [2, 3])
def test_devices_share_an_epoch(monkeypatch, n_devices):
    seen = []
    for rank in range(n_devices):
        monkeypatch.setattr(
            "g2l_plugin.slides.loader.rank_and_devices", lambda r=rank: (r, n_devices)
        )
        loader = make_loader()
        batches = epoch(loader)
        assert len(batches) == len(loader) == 702 // n_devices // 16
        seen += itertools.chain(*batches)
    assert len(set(seen)) == len(seen)


def test_later_reads_do_not_change_a_batch():
    iterator = iter(make_loader())
    first = next(iterator)
    before, tiles = first.tiles.clone(), first.numbers.copy()
    for _ in itertools.islice(iterator, 10):
        pass
    assert torch.equal(first.tiles, before)
    assert np.array_equal(first.numbers, tiles)


def test_a_batch_has_its_epoch():
    loader = make_loader()
    loader.set_epoch(3)
    assert next(iter(loader)).epoch == 3


def test_a_batch_flags_its_substitute_tiles():
    loader = make_loader()
    loader.dataset.tiles._max_lost = 1
    loader.dataset.tiles.keep(np.arange(702))
    loader.dataset.tiles._lost.add(300, 305, "gone")
    flags = {}
    for batch in loader:
        assert batch.substitutes.dtype == bool
        flags |= dict(zip(batch.numbers, batch.substitutes, strict=True))
    assert {tile for tile, flag in flags.items() if flag} == {*range(300, 305)} & {*flags}
    assert any(flags.values())


class DyingTiles(NumberedTiles):
    """Tiles whose reading kills the process, as happens when memory runs out."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_is_a_user_error():
    loader = TileLoader(DyingTiles([100]), batch_size=4, num_workers=1)
    with pytest.raises(UserError, match="A process that reads tiles died: .*N_DATA_WORKERS"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_some_batches_are_the_same_tiles_shared_by_the_devices(workers):
    loader = make_loader(num_workers=workers)
    alone = list(some_batches(loader, 50))
    assert [len(batch.tiles) for batch in alone] == [16, 16, 16, 2]
    chosen = list(itertools.chain(*map(numbers, alone)))
    assert chosen == sorted(set(chosen)) and not alone[0].substitutes.any()
    devices = [
        list(itertools.chain(*map(numbers, some_batches(loader, 50, rank, 3)))) for rank in range(3)
    ]
    assert [len(part) for part in devices] == [16, 16, 16]
    assert set(itertools.chain(*devices)) < set(chosen)
    everything = list(itertools.chain(*map(numbers, some_batches(loader, 10**6))))
    assert everything == list(range(702))
