"""How eva learns of this package, and of any other that adds backbones to its registry.

PyTorch calls `autoload` at the end of `import torch` (entry-point group `torch.backends`), before
eva exists. It asks to be told when eva's registry and eva's command line are imported:

- every entry point of the group `eva.backbones` then becomes a backbone of that name;
- the trainer and the module are imported, so that configs name them bare and `--help` lists them;
- errors that a user can mend are printed by the command line without a traceback.

Nothing here may raise or be slow: `import torch` and `import eva` belong to the user. The variable
G2L_PLUGIN_AUTOLOAD=0 switches all of it off.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

ENTRY_POINT_GROUP = "eva.backbones"
"""Entry points of this group, of any package, become backbones in eva's registry."""

SWITCH = "G2L_PLUGIN_AUTOLOAD"
"""Set to 0, this variable leaves torch and eva as if the package were not installed."""

_REGISTRY_MODULE = "eva.vision.models.networks.backbones.registry"
# A hook fires at once on a module that is half imported, as most of eva is when it imports torch.
# This is the part of the command line that eva imports after its trainers and modules.
_CLI_MODULE = "eva.core.cli.setup"


def autoload() -> None:
    """Asks to be told when eva is imported; loads neither torch nor eva."""
    if os.environ.get(SWITCH) == "0":
        return
    try:
        import wrapt

        wrapt.register_post_import_hook(_guarded(register_backbones), _REGISTRY_MODULE)
        wrapt.register_post_import_hook(_guarded(prepare_cli), _CLI_MODULE)
    except Exception as error:
        warnings.warn(f"g2l-plugin: eva will not find its backbones: {error!r}", stacklevel=2)


def register_backbones(registry_module: ModuleType) -> None:
    """Adds the entry points of the group `eva.backbones` to eva's registry, unloaded.

    Args:
        registry_module: eva's module that holds `backbone_registry`.
    """
    registry = registry_module.backbone_registry
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            _check(entry_point)
            registry.register(entry_point.name)(LazyBackbone(entry_point))
        except Exception as error:
            warnings.warn(f"{_describe(entry_point)} is left out: {error}", stacklevel=2)


def prepare_cli(cli_module: ModuleType) -> None:
    """Makes trainer and module known to eva's command line, and its errors short.

    Args:
        cli_module: eva's module that tells when; not used.
    """
    previous = sys.excepthook

    def print_user_errors(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        from g2l_plugin.errors import UserError

        if issubclass(kind, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = print_user_errors
    import g2l_plugin.distillation.module
    import g2l_plugin.distillation.trainer  # noqa: F401


class LazyBackbone:
    """A backbone function that is imported when its signature is asked for or it is called."""

    def __init__(self, entry_point: importlib.metadata.EntryPoint) -> None:
        """Initializes the backbone from its entry point, without loading it."""
        self._entry_point = entry_point

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Builds the backbone."""
        return self._load()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's own signature: eva passes only arguments that it names."""
        return inspect.signature(self._load())

    def _load(self) -> Callable[..., Any]:
        try:
            return self._entry_point.load()
        except Exception as error:
            raise ImportError(f"{_describe(self._entry_point)} cannot be loaded: {error!r}") from error


def _guarded(hook: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Turns an exception of an import hook into a warning."""

    def guarded(module: ModuleType) -> None:
        try:
            hook(module)
        except Exception as error:
            warnings.warn(f"g2l-plugin: {hook.__name__} failed: {error!r}", stacklevel=2)

    return guarded


def _check(entry_point: importlib.metadata.EntryPoint) -> None:
    """Raises where it is cheap to see that an entry point can never be loaded."""
    if not entry_point.pattern.match(entry_point.value):
        raise ValueError("its value is not of the form module:function")
    package = entry_point.module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"there is no package {package!r}")


def _describe(entry_point: importlib.metadata.EntryPoint) -> str:
    owner = f" of {entry_point.dist.name}" if entry_point.dist else ""
    return (
        f"Backbone {entry_point.name!r} (entry point {entry_point.value!r} in group "
        f"{ENTRY_POINT_GROUP!r}{owner})"
    )
