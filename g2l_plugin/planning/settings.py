"""What the run would use: a config's values, with the variables of the environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from g2l_plugin.config_files import load_config
from g2l_plugin.encoders.known import KnownEncoder, find_known
from g2l_plugin.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    """A teacher or the student of a run.

    Attributes:
        variable: The variable that names it, TEACHER or STUDENT.
        source: Its source, for `load_encoder`.
        revision: Branch, tag or commit; None if none is named, or if the source has it.
        pretrained: Whether it has published weights.
        dtype: Precision of its weights.
    """

    variable: str
    source: str
    revision: str | None = None
    pretrained: bool = True
    dtype: str = "float32"

    @property
    def known(self) -> KnownEncoder | None:
        """Its facts, if it is a known encoder."""
        return find_known(self.source.partition("@")[0])

    @property
    def parameters(self) -> int | None:
        """Number of its weights; None if it is not a known encoder."""
        return self.known.parameters if self.known else None

    @property
    def repo_id(self) -> str | None:
        """Its repository on the Hub; None for other sources."""
        scheme, _, name = self.source.partition("@")[0].partition(":")
        return name if scheme == "hf-hub" else self.known.repo_id if self.known else None

    def is_cached(self) -> bool:
        """Whether its weights are in the Hub's local cache."""
        if self.repo_id is None:
            return False
        revision = self.source.partition("@")[2] or self.revision
        try:
            found = try_to_load_from_cache(self.repo_id, "model.safetensors", revision=revision)
        except HFValidationError:  # no repository can have this name
            return False
        return isinstance(found, str)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run on which a machine may fail.

    Attributes:
        teachers: The teachers.
        student: The student.
        batch_size: Tiles in a step, per device.
        micro_batch_size: Tiles in a forward pass; None takes the batch.
        max_steps: Maximum number of steps.
        view_size: Side of a view in pixels.
        devices: Number of devices; None takes all.
        accelerator: Lightning's name of the kind of device.
        precision: Lightning's name of the precision.
        tile_size: Side of a tile in pixels.
        buffer_tiles: Tiles in memory, per device.
        workers: Data workers, per device; None takes one per core.
        n_slides: Number of slides to choose; None takes all.
        output_root: Folder of the run.
        index_root: Folder of the index.
        slides_root: Folder of the slides.
        slides: List of the slides.
        overwrite_mpp: Microns per pixel of slides that do not say it.
        packed_root: Folder or address of packed tiles.
        teacher_cache: Folder of the teacher's embeddings.
    """

    teachers: tuple[Model, ...]
    student: Model
    batch_size: int
    micro_batch_size: int | None
    max_steps: int
    view_size: int
    devices: int | None
    accelerator: str
    precision: str
    tile_size: int
    buffer_tiles: int
    workers: int | None
    n_slides: int | None
    output_root: Path
    index_root: Path
    slides_root: Path
    slides: Path | None
    overwrite_mpp: float | None
    packed_root: str | None
    teacher_cache: Path | None

    @property
    def tile_bytes(self) -> int:
        """Size of a tile in memory: RGB, uint8."""
        return 3 * self.tile_size**2


def read_settings(config: str) -> Settings:
    """Reads the settings of a run.

    Args:
        config: A config of the recipe, by name or path (see `config_files.find_config`).

    Raises:
        UserError: There is no such config, it is not one of the recipe, or a variable has a value
            that it cannot have.
    """
    loaded = load_config(config)
    try:
        trainer, model, data = (loaded[part]["init_args"] for part in ("trainer", "model", "data"))
        tiles, loader = data["datasets"]["train"]["init_args"], data["dataloaders"]["train"]
        further = [teacher | {"revision": None} for teacher in model["further_teachers"] or []]
        devices = _typed(trainer["devices"])
        return Settings(
            teachers=tuple(_model("TEACHER", m) for m in [model["teacher"], *further]),
            student=_model("STUDENT", model["student"]),
            batch_size=_whole("BATCH_SIZE", loader["batch_size"]),
            micro_batch_size=_whole_or_none("MICRO_BATCH_SIZE", model["micro_batch_size"]),
            max_steps=_whole("MAX_STEPS", trainer["max_steps"], least=-1),  # -1: no limit
            view_size=_whole("VIEW_SIZE", model["view"]["init_args"]["size"]),
            devices=devices if isinstance(devices, int) and devices > 0 else None,
            accelerator=str(trainer["accelerator"]),
            precision=str(trainer["precision"]),
            tile_size=_whole("TILE_SIZE", tiles["width"]),
            buffer_tiles=_whole("BUFFER_TILES", data["buffer_tiles"]),
            workers=_whole_or_none("N_DATA_WORKERS", loader["num_workers"], least=0),
            n_slides=_whole_or_none("N_SLIDES", tiles["n_slides"]),
            output_root=_folder(trainer["default_root_dir"]),
            index_root=_folder(tiles["index_dir"]),
            slides_root=_folder(tiles["root"]),
            slides=_folder_or_none(tiles["file_paths"]),
            overwrite_mpp=_mpp(tiles["overwrite_mpp"]),
            packed_root=_text_or_none(tiles["packed_root"]),
            teacher_cache=_folder_or_none(model["teacher_cache"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{config} is not a config of the recipe: it lacks {error}. Give g2l_breast, "
            "g2l_prostate, g2l, g2l_robust or g2l_small, or an edited copy of one."
        ) from error


def _model(variable: str, values: dict[str, Any]) -> Model:
    return Model(
        variable,
        str(values["source"]),
        _text_or_none(values.get("revision")),
        _typed(values.get("pretrained", True)) is not False,
        str(values.get("dtype", "float32")),
    )


def _typed(value: Any) -> Any:
    """A variable's text as the value that eva's command line makes of it."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _whole(variable: str, value: Any, least: int = 1) -> int:
    number = _typed(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise UserError(f"{variable} is {value!r}. Expected a whole number, {least} or more.")
    return number


def _whole_or_none(variable: str, value: Any, least: int = 1) -> int | None:
    return None if _typed(value) is None else _whole(variable, value, least)


def _mpp(value: Any) -> float | None:
    number = _typed(value)
    if number is not None and not isinstance(number, int | float):
        raise UserError(f"OVERWRITE_MPP is {value!r}. Expected microns per pixel, such as 0.25.")
    return number


def _text_or_none(value: Any) -> str | None:
    return None if _typed(value) is None else str(value)


def _folder(value: Any) -> Path:
    return Path(str(value)).expanduser()


def _folder_or_none(value: Any) -> Path | None:
    return None if _typed(value) is None else _folder(value)
