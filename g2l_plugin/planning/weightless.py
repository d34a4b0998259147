"""A run's module without its weights: shapes alone, which take no memory and no download."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jsonargparse
import numpy as np
import torch
from loguru import logger
from typing_extensions import override

from g2l_plugin.config_files import load_config
from g2l_plugin.distillation.beyond.patches import PatchObjective
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError, in_one_line, wrong_field_in
from g2l_plugin.slides.views import AugmentedView

_LOADER = "g2l_plugin.encoders.load"
"""The module that logs which weights were loaded: here, none are."""


class _EmptyViews(AugmentedView):
    """Views without pixels: how they are made depends on values, and takes little memory."""

    @override
    def forward(
        self,
        tiles: torch.Tensor,
        numbers: np.ndarray | Sequence[int] | None = None,
        view: int = 0,
    ) -> torch.Tensor:
        shape = (len(tiles), 3, self.size, self.size)
        return tiles.new_empty(shape, dtype=torch.float32)


def read_module(config: str) -> DistillationModule:
    """Reads the module of a config, as eva's command line does; its networks are not built yet.

    Args:
        config: A config of the recipe, by name or path (see `config_files.find_config`).

    Raises:
        UserError: There is no such config, it trains no `DistillationModule`, or a value is wrong.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DistillationModule, "model")
    try:
        model = {"model": load_config(config)["model"]}
        return parser.instantiate_classes(parser.parse_object(model)).model
    except UserError:
        raise
    except (jsonargparse.ArgumentError, LookupError, TypeError, ValueError) as error:
        cause = wrong_field_in(str(error)) or in_one_line(error)
        raise UserError(
            f"{config} cannot be planned: {cause}. Give g2l_breast, g2l_prostate, "
            "g2l, g2l_robust or g2l_small, or an edited copy of one."
        ) from error


def build_weightless(module: DistillationModule) -> None:
    """Builds a module's networks on the meta device.

    Raises:
        UserError: A network cannot be built without its weights.
    """
    if module.freeze_batch_norm is None:
        module.freeze_batch_norm = module.student_source.pretrained
    module.student_source = _without_weights(module.student_source)
    module.teacher_sources = [_without_weights(source) for source in module.teacher_sources]
    # Whether a network gives a grid is asked by comparing embeddings, which have no values here.
    patch_weight, module.patch_weight = module.patch_weight, 0.0
    with torch.device("meta"), _quiet():
        module.configure_model()
        if patch_weight:
            encoders = [module.student.to("meta"), *module.teachers.to("meta").encoders]
            student, *teachers = (_grid_dim(encoder, module.view.size) for encoder in encoders)
            module.patch_objective = PatchObjective(student, teachers)
    module.patch_weight = patch_weight
    size, n_views = module.view.size, module.view.n_views
    module.view = _EmptyViews(size=size, n_views=n_views)


def _without_weights(source: EncoderSource) -> EncoderSource:
    # There are no weights to convert; the plan is that of bfloat16, and a float8 run needs less.
    source = dataclasses.replace(source, dtype=source.dtype.replace("float8", "bfloat16"))
    known = find_known(source.source.partition("@")[0])
    if source.source.startswith("eva:"):  # eva builds its networks with weights alone
        if known is None:
            raise UserError(
                f"{source.source} cannot be built without its weights. Give the same network as "
                "one of the sources that `g2l models` lists."
            )
        return dataclasses.replace(
            source, source=known.source, revision=None, model_kwargs=None, pretrained=False
        )
    return dataclasses.replace(source, pretrained=False)


def _grid_dim(encoder: Encoder, size: int) -> int:
    with torch.no_grad():
        try:
            return encoder(torch.empty(1, 3, size, size), True).grid.shape[1]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{encoder.provenance.source} gives no patch tokens or feature map, which "
                "PATCH_WEIGHT needs. Use a network of timm, or set it to 0."
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    logger.disable(_LOADER)
    try:
        yield
    finally:
        logger.enable(_LOADER)
