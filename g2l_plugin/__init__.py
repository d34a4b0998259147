"""G2L for eva: distil a giga-scale pathology encoder into a large-scale student of one cancer.

Importing this package loads neither torch nor eva; each public name is imported on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DistillationModule": "g2l_plugin.distillation.module",
    "Encoder": "g2l_plugin.encoders.encoder",
    "EncoderSource": "g2l_plugin.encoders.load",
    "KDTrainer": "g2l_plugin.distillation.trainer",
    "UserError": "g2l_plugin.errors",
    "load_encoder": "g2l_plugin.encoders.load",
}
"""Public name to the module that defines it."""

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
