"""How eva finds this package, and any other that adds backbones to its registry.

PyTorch calls `autoload` at the end of `import torch` (entry-point group `torch.backends`), before
eva exists. `autoload` registers hooks for the import of two modules of eva:

- After eva's backbones are imported, every entry point of the group `eva.backbones` becomes a
  backbone of its registry.
- When eva's command line starts, the trainer and the module are imported, so that configs can name
  them without a package and `--help` lists them; the configs of this package can include its
  recipe; and errors that a user can mend are printed without a traceback.

It also keeps ONNX Runtime, which eva imports, from reporting to its maker.

Nothing here may raise an error or be slow: `import torch` and `import eva` belong to the user.
G2L_PLUGIN_AUTOLOAD=0 switches all of it off; so does PyTorch's TORCH_DEVICE_BACKEND_AUTOLOAD=0.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any

from g2l_plugin.telemetry import switch_off_telemetry

ENTRY_POINT_GROUP = "eva.backbones"
"""Entry points of this group, of any package, become backbones in eva's registry."""

SWITCH = "G2L_PLUGIN_AUTOLOAD"
"""Set to 0, this variable leaves torch and eva as if the package were not installed."""

_OWN_PACKAGE = "g2l-plugin"
# The package and not its module `registry`: eva's own backbones are registered by then, and a name
# that two packages claim is a warning about the second instead of an error in eva.
_BACKBONES_MODULE = "eva.vision.models.networks.backbones"
# A hook runs at once on a module that is half imported, as `eva` and `eva.core.cli.cli` are when
# they import torch. eva imports this one later.
_CLI_MODULE = "eva.core.cli.setup"
_NAMES_MODULE = "eva.vision.models.wrappers.from_registry"
_DATASETS = ("eva.vision.data.datasets", "eva.core.data.datasets")
"""Packages of eva whose errors are about a download: their traceback would hide the message."""


def autoload() -> None:
    """Registers the import hooks; loads neither torch nor eva."""
    if os.environ.get(SWITCH) == "0":
        return
    switch_off_telemetry()
    try:
        import wrapt

        wrapt.register_post_import_hook(_guarded(register_backbones), _BACKBONES_MODULE)
        wrapt.register_post_import_hook(_guarded(check_names), _NAMES_MODULE)
        wrapt.register_post_import_hook(_guarded(extend_cli), _CLI_MODULE)
    except Exception as error:
        _warn(f"g2l-plugin: eva will not find its backbones: {error!r}")


def register_backbones(backbones_module: ModuleType) -> None:
    """Adds the entry points of the group `eva.backbones` to eva's registry, without loading them.

    Args:
        backbones_module: eva's package that holds `backbone_registry`.
    """
    registry = backbones_module.backbone_registry
    # Our own first: another package cannot take their names.
    found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for entry_point in sorted(found, key=lambda entry_point: _owner(entry_point) != _OWN_PACKAGE):
        try:
            _check(entry_point)
            registry.register(entry_point.name)(LazyBackbone(entry_point))
        except Exception as error:
            _warn(f"{_describe(entry_point)} is not registered: {error}")


def check_names(wrappers_module: Any) -> None:
    """Makes eva answer an unknown MODEL_NAME with the nearest names; it would print all 1,300.

    Args:
        wrappers_module: eva's module with `ModelFromRegistry`, which builds a backbone by name.
    """
    wrapper, registry = wrappers_module.ModelFromRegistry, wrappers_module.backbone_registry
    load_model = wrapper.load_model

    @functools.wraps(load_model)
    def load_known_model(self: Any) -> Any:
        name, known = self._model_name, registry.entries()
        if name not in known:
            import difflib

            from g2l_plugin.errors import UserError

            near = difflib.get_close_matches(name, known) or [n for n in known if name in n][:3]
            raise UserError(
                f"eva has no backbone {name!r} (MODEL_NAME). "
                + (f"Near it are {', '.join(near)}." if near else "`g2l models` lists some.")
            )
        return load_model(self)

    wrapper.load_model = load_known_model


def extend_cli(setup_module: Any) -> None:
    """Makes eva's command line call `prepare_cli` when it starts.

    `import eva` also imports eva's command line; only the call distinguishes the two.

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
    """Makes trainer, module and recipe known to eva's command line, and errors of users short."""
    from g2l_plugin.config_files import register_resolvers
    from g2l_plugin.errors import UserError, in_one_line, message_in

    previous = sys.excepthook

    def print_user_errors(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        # jsonargparse raises its own error from ours if a type is a union.
        causes = list(_causes(error))
        cause = next((known for known in causes if isinstance(known, UserError)), None)
        # A data worker's error arrives with the worker's traceback as its text; OmegaConf's with
        # the message of the error in a resolver.
        message = message_in(str(cause or error)) or cause
        if message is None:
            of_dataset = (f"{name}: {in_one_line(e)}" for e in causes if (name := _dataset_of(e)))
            message = next(of_dataset, None)
        if message is not None:
            print(f"error: {message}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = print_user_errors
    shorten_parser_errors()
    register_resolvers()
    register_manifest_resolver()
    import g2l_plugin.distillation.module
    import g2l_plugin.distillation.running.trainer  # noqa: F401


def shorten_parser_errors() -> None:
    """Makes the parser of eva's command line name a wrong value in a line; it would print 20."""
    import jsonargparse

    from g2l_plugin.errors import wrong_field_in

    parser: Any = jsonargparse.ArgumentParser
    error = parser.error

    @functools.wraps(error)
    def short_error(self: Any, message: str, ex: Exception | None = None) -> None:
        if self.exit_on_error:  # else the message becomes a part of another
            message = wrong_field_in(message) or message
        error(self, message, ex)

    parser.error = short_error


def register_manifest_resolver() -> None:
    """Registers `${g2l.manifest:FACT}` of the config `benchmarks/manifest`; see `manifest_task`."""
    from omegaconf import OmegaConf

    folder = os.getcwd()  # jsonargparse reads a config in the config's folder

    def resolve(fact: str) -> Any:
        from g2l_plugin.datasets.manifest_task import manifest_fact  # only that config waits for it

        return manifest_fact(fact, folder)

    OmegaConf.register_resolver("g2l.manifest", resolve, replace=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, those that it was raised from, and so on.

    jsonargparse tries every type of a union and raises its own error from the first one's; the
    others are in its variables only.
    """
    pending, known = [error], set()
    while pending:
        error = pending.pop(0)
        if not isinstance(error, BaseException) or id(error) in known:
            continue
        known.add(id(error))
        yield error
        pending += [error.__cause__, error.__context__]
        for frame, _ in traceback.walk_tb(error.__traceback__):
            pending += frame.f_locals.get("exceptions", ())


def _dataset_of(error: BaseException) -> str | None:
    """The class of eva's dataset that misses a file or finds a wrong one; None for other errors."""
    name = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith(_DATASETS) and "self" in frame.f_locals:
            name = type(frame.f_locals["self"]).__name__
    return name if isinstance(error, (OSError, ValueError)) else None


class LazyBackbone:
    """A backbone function that is imported when it is called or its signature is read."""

    def __init__(self, entry_point: importlib.metadata.EntryPoint) -> None:
        """Initializes the backbone from its entry point, without loading it."""
        self._entry_point = entry_point

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Builds the backbone."""
        return self._load()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the function: eva passes only the arguments in it."""
        return inspect.signature(self._load())

    def _load(self) -> Callable[..., Any]:
        try:
            return self._entry_point.load()
        except Exception as error:
            raise ImportError(
                f"{_describe(self._entry_point)} cannot be loaded: {error!r}"
            ) from error


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Turns an exception of a function that eva did not call into a warning."""

    def guarded(*args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            _warn(f"g2l-plugin: {function.__name__} failed: {error!r}")

    return guarded


def _warn(message: str) -> None:
    try:
        warnings.warn(message, stacklevel=3)
    except Warning:  # if warnings are errors, they still must not reach torch or eva
        print(f"warning: {message}", file=sys.stderr)


def _check(entry_point: importlib.metadata.EntryPoint) -> None:
    """Raises if it is cheap to see that an entry point can never be loaded."""
    if not entry_point.pattern.match(entry_point.value):
        raise ValueError("its value does not have the form module:function")
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
