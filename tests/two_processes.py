"""Two processes with a process group, as of two devices, for what needs no training."""

import datetime
import multiprocessing
import socket
import types

import torch
from torch import distributed

TIMEOUT = 5.0
"""Seconds after which a collective call gives up; 30 minutes in a run."""


def _broadcast(value):
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def _call(function, rank, port, reports):
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    trainer = types.SimpleNamespace(
        world_size=2,
        is_global_zero=rank == 0,
        log_dir=".",
        strategy=types.SimpleNamespace(broadcast=_broadcast, root_device=torch.device("cpu")),
    )
    try:
        function(trainer)
        distributed.barrier()  # whatever comes next
        reports.put((rank, None))
    except Exception as error:
        reports.put((rank, type(error).__name__))


def run_on_two(function):
    """Calls a function with the trainer of each device; returns the names of their errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    reports = context.Queue()
    devices = [
        context.Process(target=_call, args=(function, rank, port, reports)) for rank in (0, 1)
    ]
    for device in devices:
        device.start()
    found = dict(reports.get(timeout=120) for _ in devices)
    for device in devices:
        device.join(60)
    return found[0], found[1]
