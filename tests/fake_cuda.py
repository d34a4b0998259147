"""A CUDA device without a GPU: its tensors have a shape, a type and a device, and no values.

Tensors of the host are real, so that what the host draws and decides is what it does in a run.
Tensors of the device are PyTorch's fakes, which refuse an operation between two devices.
"""

import contextlib
import heapq
import itertools
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)

_ATTENTION = functional.scaled_dot_product_attention

_WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::is_nonzero",
    "aten::repeat_interleave",
}
"""Operations whose result, or its size, the host waits for."""

_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES = {"aten::_to_copy", "aten::copy_"}
_NO_KERNELS = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided"}
_NO_KERNELS |= {"aten::new_empty_strided", "aten::detach", "aten::lift_fresh", "aten::alias"}
_NO_KERNELS |= {"aten::_unsafe_view"}  # a view that is not marked as one


class FakeCuda(TorchDispatchMode):
    """Runs operations of the device on fakes, and those of the host as they are.

    Attributes:
        kernels: How often each operation of the device ran that is not a view.
        copies: Copies from the host to the device.
        returns: Copies from the device to the host.
        waits: Operations for which the host would wait.
    """

    def __init__(self):
        super().__init__()
        self._pinned = []
        self.reset()

    def reset(self):
        """Counts from zero."""
        self.kernels, self.copies, self.returns, self.waits = Counter(), 0, 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = operation.overloadpacket._qualified_op_name
        if name == "aten::is_pinned":
            return self._is_pinned(args[0])
        if name == "aten::_pin_memory":
            with unset_fake_temporarily():
                return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            with unset_fake_temporarily():
                return self._pin(operation(*args, **kwargs | {"pin_memory": False}))
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        target = kwargs.get("device")
        to_cuda = target is not None and torch.device(target).type == "cuda"
        if not to_cuda and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return operation(*args, **kwargs)
        if name.startswith("prim::"):
            return operation(*args, **kwargs)
        with self:  # in inference mode a composite operation comes as a whole
            if (parts := operation.decompose(*args, **kwargs)) is not NotImplemented:
                return parts
        self._note(name, operation, args, kwargs, tensors, to_cuda)
        with unset_fake_temporarily():  # what arrives on the host is any number
            if name == "aten::copy_" and not isinstance(args[0], FakeTensor):
                return args[0].fill_(1)
            if name == "aten::_to_copy" and target is not None and not to_cuda:
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if name == "aten::_local_scalar_dense":
                return 1.0
        return operation(*args, **kwargs)

    def _note(self, name, operation, args, kwargs, tensors, to_cuda):
        on_host = [t for t in tensors if not isinstance(t, FakeTensor)]
        if name in _COPIES:
            source = args[1] if name == "aten::copy_" else args[0]
            if name == "aten::copy_":
                to_cuda, asynchronous = isinstance(args[0], FakeTensor), args[2:] == (True,)
                from_cuda = isinstance(source, FakeTensor) and not to_cuda
                host = args[0] if from_cuda else source
            else:
                asynchronous = kwargs.get("non_blocking", False)
                from_cuda = isinstance(source, FakeTensor) and "device" in kwargs and not to_cuda
                host = None if from_cuda else source
            if on_host or from_cuda:
                self.copies += to_cuda
                self.returns += from_cuda
                if not asynchronous or host is None or not self._is_pinned(host):
                    self.waits.append(f"{name} between host and device")
                return
        if name in _WAITS:
            self.waits.append(name)
        if name in _INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.waits.append(f"{name} with a mask")
                if index is not None and not isinstance(index, FakeTensor):
                    self.waits.append(f"{name} with places on the host")
        if not operation.is_view and name not in _NO_KERNELS:
            self.kernels[name] += 1

    def _pin(self, tensor):
        self._pinned.append(tensor.untyped_storage())
        return tensor

    def _is_pinned(self, tensor):
        storage = tensor.untyped_storage()
        return any(storage._cdata == pinned._cdata for pinned in self._pinned)


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """The fused attention that a GPU chooses, where a fake chooses elementary operations."""
    if query.device != CUDA:
        return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    assert attn_mask is None and not dropout_p and not is_causal
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (part.to(half) for part in (query, key, value))
    if query.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, query.requires_grad, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]


class Event:
    """Stands in for `torch.cuda.Event`."""

    def record(self):
        pass

    def synchronize(self):
        pass


@contextlib.contextmanager
def fake_cuda(monkeypatch):
    """Yields the device; inside, `device="cuda"` makes fakes, and autocast takes them.

    Skips the test for a PyTorch before 2.14: fakes of 2.6 ask for a driver, later ones are untried.
    """
    if Version(torch.__version__) < Version("2.14"):
        pytest.skip("fake tensors of CUDA were tried from PyTorch 2.14 on")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # asked for each tensor: slow
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: torch.ops.aten._pin_memory(t))
    with FakeTensorMode(allow_non_fake_inputs=True), FakeCuda() as device:
        yield device


def to_cuda(module: nn.Module) -> None:
    """Moves a module onto the fake device, in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = nn.Parameter(weight.detach().to(CUDA), weight.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(CUDA)
    if isinstance(module, LightningModule):
        module._device = CUDA  # where it gathers, as `to` would have set it


def backward(loss: torch.Tensor, monkeypatch) -> None:
    """Computes gradients as `loss.backward()` does, whose engine asks for a real CUDA context.

    The nodes of the graph are PyTorch's own, in the order of its engine; as that does, a gradient
    is summed over what was broadcast, and has the type of its tensor.
    """
    # The engine's number, by which a checkpoint knows that it has computed a part again.
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 0)
    users, seen, stack = Counter(), set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            followers = [follower for follower, _ in node.next_functions if follower is not None]
            users.update(followers)
            stack.extend(followers)
    grads = {loss.grad_fn: {0: torch.ones_like(loss)}}
    order = itertools.count()
    ready = [(-loss.grad_fn._sequence_nr(), next(order), loss.grad_fn)]
    while ready:
        *_, node = heapq.heappop(ready)
        given = grads.pop(node, {})
        given = [given.get(place) for place in range(len(node._input_metadata))]
        outputs = ()
        if any(grad is not None for grad in given):
            with torch.no_grad():
                outputs = node(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not outputs:
            outputs = (None,) * len(node.next_functions)
        for (follower, place), grad in zip(node.next_functions, outputs, strict=False):
            if follower is None:
                continue
            if grad is not None:
                wanted = follower._input_metadata[place]
                with torch.no_grad():
                    if grad.shape != wanted.shape:
                        grad = grad.sum_to_size(wanted.shape)
                    grad = grad.to(wanted.dtype)
                    held = grads.setdefault(follower, {})
                    held[place] = grad if place not in held else held[place] + grad
            users[follower] -= 1
            if not users[follower]:
                heapq.heappush(ready, (-follower._sequence_nr(), next(order), follower))
