"""The pages are true: every command stands in them, their examples print what they show, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner

from sparsight import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = {name: main.get_command(click.Context(main), name) for name in main.list_commands(click.Context(main))}
NUMBER = re.compile(r"\d+\.\d+")


class Block(NamedTuple):
    """A fenced block of a page: the line it begins at, its language, its text, and the block that follows it."""

    page: Path
    line: int
    language: str
    text: str
    next_language: str
    next_text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    blocks = []
    for match, after in zip_longest(found, found[1:]):
        adjacent = after is not None and not text[match.end() : after.start()].strip()
        follows = after.groups() if after is not None and adjacent else ("", "")
        blocks.append(Block(page, text[: match.start()].count("\n") + 1, *match.groups(), *follows))
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
CONSOLE = [block for block in BLOCKS if block.language == "console"]


def test_there_are_pages_and_examples():
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert PYTHON
    assert CONSOLE


@pytest.fixture
def beside_an_index(bundled_index, tmp_path, monkeypatch) -> Path:
    """A folder to work in, where `index` is that of the bundled embeddings."""
    (tmp_path / "index").symlink_to(bundled_index)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_examples_run_and_print_what_they_show(block, beside_an_index, capsys):
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
    if block.next_language == "text":
        assert_alike(capsys.readouterr().out, block.next_text)


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block.place)
def test_commands_print_what_they_show(block, beside_an_index):
    for command, shown in commands_in(block.text):
        name, *arguments = shlex.split(command)
        assert name == "sparsight", command
        if arguments[0] == "index":  # a test's index must stay as it is
            arguments += ["--index", "other"]
            shown = re.sub(r"^index:", "other:", shown, flags=re.MULTILINE)
        result = CliRunner(env={"COLUMNS": "120"}).invoke(main, arguments)
        assert result.exit_code == 0, f"{command}: {result.output}"
        assert_alike(result.stdout, shown)


def commands_in(text: str) -> list[tuple[str, str]]:
    """Each line that begins with `$ ` and the lines below it."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block begins with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def assert_alike(found: str, shown: str) -> None:
    """The same text, blanks apart; the last digit of a number with a point may differ by one."""
    assert NUMBER.sub("#", " ".join(found.split())) == NUMBER.sub("#", " ".join(shown.split()))
    for ours, theirs in zip(NUMBER.findall(found), NUMBER.findall(shown), strict=True):
        last_digit = 10.0 ** -len(theirs.partition(".")[2])
        assert float(ours) == pytest.approx(float(theirs), abs=1.01 * last_digit), (found, shown)


def test_every_command_stands_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `sparsight ([\w-]+)", text, re.MULTILINE))
    assert documented == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_explains_every_option(name):
    command = COMMANDS[name]
    shown = CliRunner().invoke(main, [name, "--help"]).stdout
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[-1] in shown
            assert parameter.help, f"{name} {parameter.opts[-1]} has no help"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_a_page_names_exist(page):
    """Of commands written as `sparsight NAME … --option`, in the text and in blocks, and of the rows of a command."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"`sparsight ([^`\n]+)`", text)
    for block in BLOCKS:
        lines += re.findall(r"^(?:\$ )?sparsight (.+)", block.text, re.MULTILINE) if block.page == page else []
    for name, row in re.findall(r"^\| `sparsight ([\w-]+)(.*)$", text, re.MULTILINE):
        lines += [f"{name} {option}" for option in re.findall(r"(--[a-z][\w-]*)", row)]
    for line in lines:
        name, *words = line.split()
        if name.startswith("-"):
            continue
        command = COMMANDS.get(name)
        assert command is not None, f"{page.name}: no command {name!r}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        named = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert named <= known | {"--help"}, f"{page.name}: sparsight {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: {target}"


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".ci/run", ROOT / ".github/workflows/ci.yml"], ids=lambda p: p.name)
def test_make_targets_that_a_page_names_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    called = re.findall(r"`make ([a-z ]+)`|^(?:\s*(?:- )?(?:run: )?)make ([a-z]+(?: [a-z]+)*)", text, re.MULTILINE)
    for names in called:
        for name in " ".join(names).split():
            assert name in targets, f"{page.name}: make {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    """Of paths in code marks that begin with a folder of the repository."""
    named = re.findall(r"`((?:training|indexer|search|eval|tests|docs|\.github)/[\w./-]+)`", page.read_text("utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_no_page_names_a_place_of_one_machine():
    homes = re.compile(r"(?<![\w.~-])/(?:home|root|work|Users|tmp)/\w+")
    for page in [*PAGES, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".github/workflows/ci.yml"]:
        assert not homes.search(page.read_text(encoding="utf-8")), page.name
