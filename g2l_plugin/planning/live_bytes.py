"""Counts the bytes of the tensors that are alive, and their peak."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

_BLOCK = 512
"""Bytes to which CUDA's allocator rounds up.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html"""


class LiveBytes(TorchDispatchMode):
    """Counts every tensor that an operation makes while the mode is on, until it is freed.

    A view counts with the tensor that it is a view of. Within `FakeTensorMode`, tensors have sizes
    and no memory, and are freed as real ones are: so the peak of a step of any size is found on any
    machine. What a kernel allocates for itself is not seen.

    Attributes:
        now: Bytes alive.
        peak: The most that were alive since `start_peak`.
    """

    def __init__(self) -> None:
        """Initializes the counter; nothing is alive."""
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def start_peak(self) -> None:
        """Forgets the peak so far."""
        self.peak = self.now

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # its address in C++, which its views share
        if key in self._sizes:
            return
        self._sizes[key] = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
