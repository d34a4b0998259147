"""How eva learns of this package, and of any other that adds backbones to its registry.

PyTorch calls `autoload` at the end of `import torch` (entry-point group `torch.backends`), before
eva exists. It asks to be told when two modules of eva are imported:

- after eva's backbones, every entry point of the group `eva.backbones` becomes one more of them;
- when eva's command line starts, the trainer and the module are imported, so that configs name them
  bare and `--help` lists them, and errors that a user can mend are printed without a traceback.

Nothing here may raise or be slow: `import torch` and `import eva` belong to the user. The variable
G2L_PLUGIN_AUTOLOAD=0 switches all of it off; TORCH_DEVICE_BACKEND_AUTOLOAD=0 is PyTorch's own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

ENTRY_POINT_GROUP = "eva.backbones"
"""Entry points of this group, of any package, become backbones in eva's registry."""

SWITCH = "G2L_PLUGIN_AUTOLOAD"
"""Set to 0, this variable leaves torch and eva as if the package were not installed."""

_OURS = "g2l-plugin"
# The package and not its module `registry`: eva's own backbones are then in, and a name that two
# claim is a warning about the newcomer instead of an error in eva.
_BACKBONES_MODULE = "eva.vision.models.networks.backbones"
# A hook fires at once on a module that is half imported, as `eva` and `eva.core.cli.cli` are when
# they import torch. This one eva imports later.
_CLI_MODULE = "eva.core.cli.setup"


def autoload() -> None:
    """Asks to be told when eva is imported; loads neither torch nor eva."""
    if os.environ.get(SWITCH) == "0":
        return
    try:
        import wrapt

        wrapt.register_post_import_hook(_guarded(register_backbones), _BACKBONES_MODULE)
        wrapt.register_post_import_hook(_guarded(extend_cli), _CLI_MODULE)
    except Exception as error:
        _warn(f"g2l-plugin: eva will not find its backbones: {error!r}")


def register_backbones(backbones_module: ModuleType) -> None:
    """Adds the entry points of the group `eva.backbones` to eva's registry, unloaded.

    Args:
        backbones_module: eva's package that holds `backbone_registry`.
    """
    registry = backbones_module.backbone_registry
    # Ours first: another package cannot take their names.
    found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for entry_point in sorted(found, key=lambda entry_point: _owner(entry_point) != _OURS):
        try:
            _check(entry_point)
            registry.register(entry_point.name)(LazyBackbone(entry_point))
        except Exception as error:
            _warn(f"{_describe(entry_point)} is left out: {error}")


def extend_cli(setup_module: Any) -> None:
    """Has eva's command line call `prepare_cli` when it starts.

    `import eva` alone also imports eva's command line, so only the call tells them apart.

    Args:
        setup_module: eva's module with the function `setup`, which the command line calls first.
    """
    setup = setup_module.setup

    @functools.wraps(setup)
    def prepared_setup() -> None:
        _guarded(prepare_cli)()
        setup()

    setup_module.setup = prepared_setup


def prepare_cli() -> None:
    """Makes trainer and module known to eva's command line, and errors of users short."""
    from g2l_plugin.errors import UserError, message_in

    previous = sys.excepthook

    def print_user_errors(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        behind: BaseException | None = error
        # jsonargparse raises an error of its own from ours where a type is a union.
        while behind is not None and not isinstance(behind, UserError):
            behind = behind.__cause__
        if behind is not None:
            # From a data worker it comes with the worker's own traceback as its text.
            print(f"error: {message_in(str(behind)) or behind}", file=sys.stderr)
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
            raise ImportError(
                f"{_describe(self._entry_point)} cannot be loaded: {error!r}"
            ) from error


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Turns an exception of a function that eva did not ask for into a warning."""

    def guarded(*args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            _warn(f"g2l-plugin: {function.__name__} failed: {error!r}")

    return guarded


def _warn(message: str) -> None:
    try:
        warnings.warn(message, stacklevel=3)
    except Warning:  # where warnings are errors, they are still none of torch's or eva's
        print(f"warning: {message}", file=sys.stderr)


def _check(entry_point: importlib.metadata.EntryPoint) -> None:
    """Raises where it is cheap to see that an entry point can never be loaded."""
    if not entry_point.pattern.match(entry_point.value):
        raise ValueError("its value is not of the form module:function")
    package = entry_point.module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"there is no package {package!r}")


def _owner(entry_point: importlib.metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else ""


def _describe(entry_point: importlib.metadata.EntryPoint) -> str:
    return (
        f"Backbone {entry_point.name!r} (entry point {entry_point.value!r} in group "
        f"{ENTRY_POINT_GROUP!r} of {_owner(entry_point)})"
    )
