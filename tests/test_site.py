"""The documentation: it builds, and every command, link and path in it is one that there is."""

import collections
import functools
import itertools
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT

from g2l_plugin.cli import build_parser
from g2l_plugin.config_files import find_config, list_configs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = {f"reference/{name}.md" for name in ("commands", "variables", "python")}
RECIPE = ROOT / "configs" / "recipes" / "g2l.yaml"

OF_EVA = "configs/vision/"
"""Where eva's own configs are, which its users have."""

OF_NO_CONFIG = {
    "CUDA_VISIBLE_DEVICES",
    "DASK_DISTRIBUTED__WORKER__DAEMON",
    "G2L_PLUGIN_AUTOLOAD",
    "G2L_STUDENT",
    "LABEL",
}
"""Variables that no config reads, and the word that stands for a model's label."""

ASSIGNMENT = re.compile(r"[A-Z0-9_]+=")
CONFIG = re.compile(r"\$\(g2l config ([\w/]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_has_every_page(site):
    for name in [*(page.name for page in PAGES[1:]), *REFERENCE]:
        path = site / name.removesuffix(".md")
        path = site if name == "index.md" else path
        assert "<h1" in (path / "index.html").read_text(), name


def test_the_reference_has_every_command_variable_and_name(site):
    commands, variables, names = (
        (site / "reference" / page / "index.html").read_text()
        for page in ("commands", "variables", "python")
    )
    for command in ("doctor", "embed", "prepare pathorob", "report"):
        assert f">g2l {command}<" in commands
    recipe = re.findall(r"\$\{oc\.env:(\w+)", RECIPE.read_text())
    assert not [name for name in (*recipe, "CANCER", "APD_REPEATS") if name not in variables]
    public = re.findall(r"import (\w+) as", (ROOT / "g2l_plugin" / "__init__.pyi").read_text())
    assert not [name for name in public if not re.search(rf'id="g2l_plugin[\w.]*\.{name}"', names)]


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^" >]+)', text)
        loaded += re.findall(r'<link[^>]* href="?([^" >]+)', text)
        assert loaded and not [address for address in loaded if re.match("https?:|//", address)]


def test_the_page_of_the_recipe_explains_each_of_its_variables():
    page = (ROOT / "docs" / "recipe.md").read_text()
    variables = {*re.findall(r"\$\{oc\.env:(\w+)", RECIPE.read_text()), "CANCER"}
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line[:1] == "|")
    assert not {name for name in variables if f"`{name}`" not in rows}


def blocks(page):
    """The code blocks of a page: language and text."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page):
    """The commands of `g2l` and `eva` in a page's code blocks, as words without variables."""
    for language, text in blocks(page):
        if language.strip() not in ("", "bash"):
            continue
        text = CONFIG.sub(r"shipped:\1", text.replace("\\\n", " "))
        text = re.sub(r"\$\{?\w+\}?", "1", text)  # a variable of the shell, e.g. a job's number
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            for separator, group in itertools.groupby(lexer, lambda word: word[0] in ";&|"):
                words = [] if separator else list(group)
                while words and (ASSIGNMENT.match(words[0]) or words[0] in ("export", "...")):
                    words = words[1:]
                program = next((n for n, word in enumerate(words) if word in ("g2l", "eva")), None)
                if program == 0 or (words and words[0] == "srun" and program):
                    yield words[program:]


COMMANDS = [
    pytest.param(words, id=f"{page.name}: {' '.join(words)}")
    for page in PAGES
    for words in commands(page)
]


def test_the_commands_are_found():
    found = collections.Counter(command.values[0][0] for command in COMMANDS)
    assert found["g2l"] > 20 and found["eva"] > 20, found


@functools.cache
def parser():
    return build_parser()


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_in_the_documentation_is_one(words, capsys):
    if words[0] == "g2l":
        try:
            options = parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
        assert callable(options.command)
        return
    assert words[1] in ("fit", "predict_fit") and words[2] == "--config", words
    name = words[3]
    if name.startswith("shipped:"):
        assert name.removeprefix("shipped:") in list_configs()
    elif not name.startswith(OF_EVA):
        assert (ROOT / name).is_file() and find_config(str(ROOT / name))
    # Training has no benchmark's config, nor the other way round.
    assert ("benchmarks/" in name or name.startswith(OF_EVA)) == (words[1] == "predict_fit")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_variable_that_a_page_sets_is_one_of_a_config(page):
    texts = "".join(path.read_text() for path in (ROOT / "configs").rglob("*.yaml"))
    known = {*re.findall(r"\$\{oc\.env:(\w+)", texts), *OF_NO_CONFIG}
    assert not {*re.findall(r"\b([A-Z][A-Z0-9_]+)=", page.read_text())} - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_relative_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if path in REFERENCE:
            continue
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_path_of_this_repository_that_a_page_names_is_there(page):
    named = re.findall(
        r"(?<![\w/])(?:configs|benchmarks|tests|tools|docs|g2l_plugin)/[\w/]+\.(?:yaml|py|md|svg)",
        page.read_text(),
    )
    assert not [path for path in named if not (path.startswith(OF_EVA) or (ROOT / path).is_file())]


def test_the_readme_is_a_first_screen():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert "pip install . && eva fit --config configs/quickstart.yaml" in lines
    assert lines.count("pip install '.[test]' && pytest") == 1
