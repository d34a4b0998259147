"""Speeds of several encoders that can be compared: measured in turns, in one process.

A machine's speed changes with its load, its clock and its temperature, often by more than two
models differ. So each model is measured once a round, beside a large matrix product, and ratios are
taken within a round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.weights import hash_tensors

_LEAST_SECONDS = 0.2
"""A turn repeats its batch for at least so long."""

_PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices that are multiplied."""


@dataclasses.dataclass(frozen=True)
class TimedBatch:
    """How fast an encoder embeds batches of one size.

    Attributes:
        batch_size: Tiles per batch.
        tiles_per_second: Median over the rounds.
        low: Lower quartile.
        high: Upper quartile.
        of_product: Share of the matrix product's operations per second, the median over the rounds.
        peak_memory_bytes: Peak on a CUDA device, with the weights of all encoders; else None.
    """

    batch_size: int
    tiles_per_second: float
    low: float
    high: float
    of_product: float
    peak_memory_bytes: int | None


@dataclasses.dataclass(frozen=True)
class TimedEncoder:
    """An encoder, and how fast it is.

    Attributes:
        name: Its name.
        sha256: Hash of its weights, by which a report knows the model.
        parameters: Number of weights.
        flops: Floating-point operations per tile.
        embedding_dim: Width of its embeddings.
        input_size: Side of a tile, in pixels.
        batches: Its speed by size of batch; a batch that does not fit into memory is left out.
    """

    name: str
    sha256: str
    parameters: int
    flops: int
    embedding_dim: int
    input_size: int
    batches: tuple[TimedBatch, ...]


@torch.inference_mode()
def time_in_turns(
    encoders: Mapping[str, Encoder],
    sizes: Mapping[str, int],
    batch_sizes: Sequence[int],
    rounds: int,
    precision: torch.dtype = torch.float32,
) -> tuple[list[TimedEncoder], float]:
    """Measures encoders in turns: the networks alone, on normalised tiles in memory.

    Args:
        encoders: The encoders by name, all on one device.
        sizes: Side of the tiles of each, in pixels.
        batch_sizes: Tiles per batch.
        rounds: Turns of each encoder and batch size.
        precision: Float32, or the precision of autocast.

    Returns:
        The encoders, and the operations per second of the matrix product, the median over its
        turns.

    Raises:
        UserError: A network does not accept tiles of its size.
    """
    device = next(iter(encoders.values())).mean.device
    product, operations = _product(device, precision)
    facts = {name: _describe(name, own, sizes[name]) for name, own in encoders.items()}
    turns: dict[tuple[str, int], Callable[[], Any]] = {}
    peaks: dict[tuple[str, int], int | None] = {}
    for name, batch_size in itertools.product(encoders, batch_sizes):
        turn = _forward(encoders[name], sizes[name], batch_size, precision)
        try:
            peaks[name, batch_size] = _warm_up(turn, device)
        except torch.OutOfMemoryError:
            continue
        turns[name, batch_size] = turn
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in turns}
    shares: dict[tuple[str, int], list[float]] = {key: [] for key in turns}
    limits: list[float] = []
    order = list(turns)
    for number in tqdm(range(rounds), "Rounds", leave=False, dynamic_ncols=True):
        start = number % max(len(order), 1)  # a machine that slows down must not favour one
        for name, batch_size in (*order[start:], *order[:start]):
            limits.append(_per_second(product, device) * operations)
            rate = _per_second(turns[name, batch_size], device) * batch_size
            rates[name, batch_size].append(rate)
            shares[name, batch_size].append(rate * facts[name]["flops"] / limits[-1])
    timed = [
        TimedEncoder(
            **own,
            batches=tuple(
                _summarise(key[1], rates[key], shares[key], peaks[key])
                for key in order
                if key[0] == name
            ),
        )
        for name, own in facts.items()
    ]
    return timed, float(np.median(limits)) if limits else 0.0


def _describe(name: str, encoder: Encoder, size: int) -> dict[str, Any]:
    encoder.check_views(size)
    return {
        "name": name,
        "sha256": hash_tensors(encoder.model),
        "parameters": encoder.count_parameters(),
        "flops": encoder.count_flops(size),
        "embedding_dim": encoder.embedding_dim,
        "input_size": size,
    }


def _forward(
    encoder: Encoder, size: int, batch_size: int, precision: torch.dtype
) -> Callable[[], Any]:
    """Embeds a batch; the tiles are made when they are needed, and only one batch is held."""
    device = encoder.mean.device
    images = torch.zeros(1, 3, size, size, device=device).expand(batch_size, -1, -1, -1)
    cast = (
        contextlib.nullcontext()
        if precision == torch.float32
        else torch.autocast(device.type, precision)
    )

    def forward() -> Any:
        with cast:
            return encoder.model(images)

    return forward


def _product(device: torch.device, precision: torch.dtype) -> tuple[Callable[[], Any], int]:
    """A product of two square matrices, and its operations."""
    side = _PRODUCT_SIDE.get(device.type, 1024)
    a, b = (torch.rand(side, side, device=device, dtype=precision) for _ in range(2))
    return lambda: a @ b, 2 * side**3


def _warm_up(turn: Callable[[], Any], device: torch.device) -> int | None:
    """Runs a turn once, since the first chooses kernels; returns its peak memory on CUDA."""
    if device.type != "cuda":
        turn()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    turn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _per_second(turn: Callable[[], Any], device: torch.device) -> float:
    """Repeats a turn for a while; returns how often a second it ran."""
    start, repeats = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < _LEAST_SECONDS or not repeats:
        turn()
        repeats += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return repeats / seconds


def _summarise(
    batch_size: int, rates: Sequence[float], shares: Sequence[float], peak: int | None
) -> TimedBatch:
    low, middle, high = np.quantile(rates, (0.25, 0.5, 0.75)).tolist()
    return TimedBatch(batch_size, middle, low, high, float(np.median(shares)), peak)
