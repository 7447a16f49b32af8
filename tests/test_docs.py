"""README and docs are true in what a machine can check: links, paths, commands, code."""

import argparse
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import yaml

from g2is_ray import __version__
from g2is_ray.errors import SettingError
from jobs.commands import COMMANDS
from jobs.flags import check_command, parser_of

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
BENCHMARKS = {"--rows"}  # flags of benchmarks that the docs name

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc(?:set)?=\"([^\"]+)\"")
OUR_PATH = re.compile(r"\b(?:g2is_ray|actors|jobs|tests|benchmarks|deploy|examples)/[a-z0-9_./-]*")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@cache
def parser() -> argparse.ArgumentParser:
    """A parser with the flags of all commands."""
    return parser_of([*COMMANDS])


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return INDENTED.sub("", FENCED.sub("", read(page)))


def code(page: Path) -> list[str]:
    """Blocks and spans of code."""
    text = read(page)
    blocks = [found[2] for found in FENCED.finditer(text)]
    blocks += [found[0] for found in INDENTED.finditer(FENCED.sub("", text))]
    return [*blocks, *INLINE.findall(prose(page))]


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `g2is` command in blocks and spans of code."""
    for block in code(page):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                if command.strip().startswith("g2is "):
                    yield shlex.split(command, comments=True)[1:]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may name, as Markdown's `toc` writes it."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", read(page)), re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", word) for word in words}


def test_readme_is_short():
    assert len(read(ROOT / "README.md").split()) <= 1200


@each_page
def test_a_relative_link_leads_somewhere(page):
    for link in map("".join, LINK.findall(prose(page))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.is_file() or found.is_dir(), link
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), link


def complaint(command: list[str]) -> str:
    """The error that the `g2is` command line raises for these arguments; empty if there is none."""
    line = f"g2is {shlex.join(command)}"
    try:
        check_command(command)
        with redirect_stdout(io.StringIO()):
            _, unknown = parser().parse_known_args(command)
    except SettingError as error:
        return f"{line}: {error}"
    except SystemExit:  # after --help
        return ""
    return f"{line}: {unknown}" if unknown else ""


@each_page
def test_a_command_is_understood(page):
    assert not list(filter(None, map(complaint, commands(page))))


def test_a_wrong_command_is_not_understood():
    assert "--no-such-flag" in complaint(["run", "--no-such-flag"])
    assert not complaint(["run", "--help"])


def test_commands_are_found_in_blocks_and_spans(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("See `g2is run --redo x`:\n\n    g2is walk \\\n        -k 1  # why\n\nend\n")
    assert list(commands(page)) == [["walk", "-k", "1"], ["run", "--redo", "x"]]


@each_page
def test_a_flag_exists(page):
    [subparsers] = [action for action in parser()._actions if action.choices]
    flags = {flag for sub in subparsers.choices.values() for flag in sub._option_string_actions}
    for span in INLINE.findall(prose(page)):
        named = re.match(r"--[a-z][a-z-]*", span)
        assert not named or named[0] in flags | BENCHMARKS, span


@each_page
def test_a_path_of_the_repository_exists(page):
    for span in code(page):
        for path in OUR_PATH.findall(span):
            followed = span[span.index(path) + len(path) :][:1]
            if followed not in ("*", "{", "…") and not followed.isupper():
                assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_test_that_is_named_exists(page):
    file = ""
    for name, test in re.findall(r"([\w./]+\.py|…)?(?:::(test_\w+))?", prose(page)):
        if name.endswith(".py") and Path(name).name.startswith("test_"):
            file = Path(name).name
            assert list((ROOT / "tests").rglob(file)), file
        if test:
            [found] = (ROOT / "tests").rglob(file)
            assert f"def {test}(" in read(found), f"{file}::{test}"


@each_page
def test_python_compiles(page):
    for language, block in FENCED.findall(read(page)):
        if language == "python":
            compile(block, str(page), "exec")


def test_the_site_lists_every_page():
    def pages(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for one in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(one)

    nav = yaml.safe_load(read(ROOT / "mkdocs.yml"))["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


def test_decisions_are_numbered_and_listed():
    folder = ROOT / "docs/decisions"
    files = sorted(folder.glob("[0-9]*.md"))
    for number, file in enumerate(files, 1):
        assert file.name.startswith(f"{number:04}-")
        assert read(file).startswith(f"# {number}. ")
    assert re.findall(r"\((\d{4}-.*?)\)", read(folder / "README.md")) == [f.name for f in files]


def test_the_citation_is_complete():
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] and citation["message"] and citation["authors"]
    assert citation["version"] == __version__
    papers = [reference["url"] for reference in citation["references"]]
    assert papers == ["https://arxiv.org/abs/2502.11062", "https://arxiv.org/abs/2402.04333"]
