"""Garbage that this process leaves, and which a process that it starts is not to finalize."""

import contextlib
import gc
import os


class _Loop:
    def __init__(self, path):
        self.path, self.itself = path, self

    def __del__(self):
        self.path.write_text(str(os.getpid()))


@contextlib.contextmanager
def left_to_this_process(path):
    """Leaves garbage that writes, when it is finalized, the process into the file `path`."""
    gc.disable()
    try:
        _Loop(path)
        yield
        assert not path.exists()
    finally:
        gc.enable()
    gc.collect()
    assert path.read_text() == str(os.getpid())
