import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from g2l_plugin.planning.live_bytes import LiveBytes

MEGABYTE = 2**20


def test_what_is_freed_no_longer_counts_and_the_peak_stays():
    with LiveBytes() as live:
        first = torch.zeros(2, MEGABYTE, dtype=torch.uint8)
        second = first + 1
        assert (live.now, live.peak) == (4 * MEGABYTE, 4 * MEGABYTE)
        del first
        assert (live.now, live.peak) == (2 * MEGABYTE, 4 * MEGABYTE)
        live.start_peak()
        assert live.peak == 2 * MEGABYTE
        del second
    assert live.now == 0


def test_a_view_counts_with_its_tensor_and_keeps_it():
    with LiveBytes() as live:
        row = torch.zeros(4, MEGABYTE, dtype=torch.uint8)[1]
        assert live.now == 4 * MEGABYTE
        half = row[:10]
        del row
        assert live.now == 4 * MEGABYTE and len(half) == 10


def test_small_tensors_take_a_block():
    with LiveBytes() as live:
        kept = [torch.zeros(1), torch.zeros(129)]
        assert live.now == 512 + 1024 and len(kept) == 2


def test_what_autograd_keeps_is_a_sum_by_hand_without_any_memory():
    n = 2**15  # one matrix has 4 GB
    with FakeTensorMode(), LiveBytes() as live:
        x = torch.empty(n, n, requires_grad=True)
        y = (x.exp().sin() * 2).sum()  # exp keeps its result, which is the argument that sin keeps
        assert live.now == 2 * 4 * n * n + 512
        assert live.peak == 4 * 4 * n * n  # x, exp, sin and its double
        y.backward()
        del y
        assert live.now == 2 * 4 * n * n  # x and its gradient
