"""The eva configs that this package ships: found by name, listed, copied, loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from g2l_plugin.errors import UserError, in_one_line, message_in
from g2l_plugin.files import write_text

_PACKAGE = Path(__file__).parent
_RECIPE = "recipes/g2l.yaml"
_INCLUDE = re.compile(
    r"\$\{g2l\.recipe:trainer, (?P<cancer>\$\{[^}]*\}|\w+)(?:, (?P<recipe>\w+))?\}$", re.MULTILINE
)
_CHOICE = re.compile(
    r"\$\{by_(?P<kind>cancer|recipe):(?P<name>\w+), (?P<default>(?:[^{}]|\$\{cancer\})*)\}"
)
_PAPER = "paper"


def configs_folder() -> Path:
    """The folder of the configs: in the installed package, else at the top of the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def list_configs() -> dict[str, str]:
    """The configs that `eva` runs: name, as `g2l config` accepts it, to its first comment line."""
    folder = configs_folder()
    names = [path.relative_to(folder).with_suffix("") for path in sorted(folder.rglob("*.yaml"))]
    runnable = sorted(
        (name for name in names if name.parts[0] != "recipes"),
        key=lambda name: (len(name.parts), name),
    )
    return {name.as_posix(): _summary(folder / f"{name}.yaml") for name in runnable}


def find_config(name: str) -> Path:
    """Finds a config.

    Args:
        name: The name of a shipped config, e.g. `g2l_breast` or `benchmarks/bach`, with or without
            `.yaml`; or the path of a file.

    Raises:
        UserError: There is no such config.
    """
    if Path(name).is_file():
        return Path(name)
    path = configs_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise UserError(f"There is no config {name!r}. Expected one that `g2l config` lists.")
    return path


def copy_config(name: str, folder: Path) -> Path:
    """Copies a shipped config into a folder, to be edited there.

    A config that includes a recipe is written out, with the recipe's comments and variables.

    Args:
        name: See `find_config`.
        folder: The folder; created if it does not exist.

    Returns:
        The copy.

    Raises:
        UserError: There is no such config, or the folder has a file of its name.
    """
    source = find_config(name)
    target = folder.expanduser() / source.name
    if target.exists():
        raise UserError(f"{target} exists. Remove it, or copy into another folder.")
    text = source.read_text(encoding="utf-8")
    if include := _INCLUDE.search(text):
        cancer = OmegaConf.create({"cancer": include["cancer"]}).cancer
        text = _expand_recipe(cancer, include["recipe"] or _PAPER)
    write_text(target, text)
    return target


def load_config(name: str | Path) -> dict[str, Any]:
    """Loads a config with its variables resolved by the environment.

    Args:
        name: See `find_config`.

    Raises:
        UserError: There is no such config, or one of its variables has no value.
    """
    register_resolvers()
    config = OmegaConf.load(find_config(str(name)))
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except InterpolationResolutionError as error:  # OmegaConf drops the error of a resolver
        raise UserError(message_in(str(error)) or in_one_line(error)) from error


def register_resolvers() -> None:
    """Registers `${g2l.recipe:PART, CANCER, RECIPE}`: the trainer, model or data of a recipe.

    RECIPE is `paper`, which may be left out, or one that the recipe's `by_recipe` names.
    """
    OmegaConf.register_resolver("g2l.recipe", _recipe_part, replace=True)


def _recipe_part(part: str, cancer: str | None, name: str = _PAPER) -> DictConfig:
    recipe: Any = OmegaConf.create(_expand_recipe(cancer, name))
    # A node of OmegaConf, and no plain dictionary: a change on the command line is merged into it.
    return DictConfig(OmegaConf.to_container(recipe[part], resolve=True))


def _expand_recipe(cancer: str | None, recipe: str) -> str:
    """A recipe as a config of its own, for one cancer.

    Its own variables, `${cancer}`, `${by_cancer:NAME, DEFAULT}` and `${by_recipe:NAME, DEFAULT}`,
    are filled in. Those of the environment stay.
    """
    if cancer is None:
        raise UserError(
            "CANCER is not set. Name the cancer of the slides before the command: CANCER=lung "
            "SLIDES_ROOT=... eva fit --config ..."
        )
    text = (configs_folder() / _RECIPE).read_text(encoding="utf-8")
    head, separator, body = text.partition("\ntrainer:")
    choices, chosen = yaml.safe_load(head), {"cancer": cancer, "recipe": recipe}

    def choose(match: re.Match[str]) -> str:
        values = choices[f"by_{match['kind']}"][match["name"]]
        choice = chosen[match["kind"]]
        value = values.get(choice, match["default"])
        return value if isinstance(value, str) else json.dumps(value)  # JSON is YAML of one line

    body = _CHOICE.sub(choose, separator.lstrip("\n") + body).replace("${cancer}", cancer)
    title = "G2L recipe (arXiv 2510.11176)" if recipe == _PAPER else f"{recipe} recipe"
    return f"---\n# The {title} for {cancer} cancer.\n{body}"


def _summary(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("#").strip() for line in lines if line.startswith("#")), "")
