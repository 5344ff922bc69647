"""The pages of the documentation: their commands can be given, their numbers and pictures come from scripts."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from spinevision.cli import _parser
from spinevision.fit_options import own_options
from spinevision.recipes import check_key, read_recipe, recipe_architecture, recipe_path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "systems").glob("*.md"))
every_system = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def commands(text: str) -> list[list[str]]:
    """The command lines of ``spinevision`` in the bash blocks of a page, without what stands behind a #."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("spinevision ")]


def example_of(page: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module(page.stem)


TEXTS = sorted({ROOT / "README.md", *DOCS.rglob("*.md")})


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_every_command_can_be_given(path: Path) -> None:
    for words in commands(path.read_text(encoding="utf-8")):
        if words[:1] != ["fit"]:
            _parser().parse_args(words)
            continue
        options, rest = own_options(words[1:])
        files = [recipe_path(name) for name in options.config or [] if "/" not in name or not name.endswith(".yaml")]
        architectures = [recipe_architecture(read_recipe(file)) for file in files]
        named = next(filter(None, reversed(architectures)), "UNet")
        for option in (word[2:].partition("=")[0] for word in rest if word.startswith("--")):
            check_key(option, named)


def test_a_command_that_cannot_be_given_is_found() -> None:
    (words,) = commands("```bash\nspinevision fit --data.rooot x   # no\n```")
    with pytest.raises(ValueError, match="root"):
        check_key(words[1][2:], "UNet")


def test_every_system_has_its_page_and_its_example() -> None:
    systems = {"bess_nerve", "nerve_video", "lumbar_tissue", "bleeding", "facial_nerve"}
    assert {page.stem for page in PAGES} == systems
    assert systems <= {path.stem for path in (ROOT / "examples").glob("*.py")}


@every_system
def test_an_example_is_short(page: Path) -> None:
    assert len((ROOT / "examples" / f"{page.stem}.py").read_text(encoding="utf-8").splitlines()) < 60


@every_system
def test_numbers_and_pictures_come_from_the_script(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, text = example_of(page, monkeypatch), page.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- begin (\S+) -->\n(.*?)<!-- end \1 -->", text, re.DOTALL))
    assert set(blocks) == {*example.TABLES, *example.PLOTS, *example.FRAMES, "run"}
    result = (ROOT / "benchmarks" / "results" / f"system-{page.stem}.md").read_text(encoding="utf-8")
    for name in (*example.TABLES, "run"):
        assert blocks[name].strip() and blocks[name].strip() in result
    for name in (*example.PLOTS, *example.FRAMES):
        assert blocks[name].strip() == f"![{name}](figures/{page.stem}-{name}.png)"
        assert (page.parent / "figures" / f"{page.stem}-{name}.png").stat().st_size > 1000
