"""What the documents promise is there, and what is there is documented."""

from __future__ import annotations

import re
import sys

import click
import pytest

from conftest import ROOT
from heliproxy import cli, columns, directives, store

sys.path.append(str(ROOT / "scripts"))
import readme_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
LEAVES = dict(readme_tables.leaves())
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [*cli.COMMANDS, *LEAVES])
def test_every_command_is_in_the_readme(name):
    assert f"`heliproxy {name}" in README or f"heliproxy {name} " in README


OPTIONS = [
    (name, option.opts[0] if len(option.opts) == 1 else max(option.opts, key=len), option.help)
    for name, command in LEAVES.items()
    for option in readme_tables.options_of(command)
]


@pytest.mark.parametrize(("command", "option", "text"), OPTIONS)
def test_every_option_is_in_the_readme(command, option, text):
    assert f"`{option}`" in README


@pytest.mark.parametrize("option", [name for name, _, _ in readme_tables.mitmproxy_options()])
def test_every_mitmproxy_option_is_in_the_readme(option):
    assert f"| `{option}` |" in README


@pytest.mark.parametrize("header", sorted(directives.KNOWN))
def test_every_header_we_read_or_ignore_is_in_the_readme(header):
    assert f"`{header}`" in README.lower()


def test_columns_of_requests_are_those_of_the_store():
    assert tuple(columns.REQUESTS) == store.COLUMNS


def test_columns_of_all_tables_are_those_of_the_schema():
    documented = {"requests": tuple(columns.REQUESTS), **{name: tuple(of) for name, of in columns.OTHERS.items()}}
    assert documented == {name: tuple(of) for name, of in readme_tables.schema().items()}


@pytest.mark.parametrize("column", store.COLUMNS)
def test_every_column_is_in_the_readme(column):
    assert f"| `{column}` |" in README


def test_tables_made_by_cog_are_there():
    assert README.count("[[[cog") == README.count("[[[end]]]") == 8
    for table in (readme_tables.commands(), readme_tables.requests_columns(), readme_tables.addon_options()):
        assert table in README


# In shell blocks, remarks left out, and in running text.
SHELL = "\n".join(
    line.partition(" #")[0]
    for language, text in FENCES
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
)
INLINE = "\n".join(re.findall(r"`([^`\n]+)`", README))
SHOWN = sorted(set(re.findall(r"\bheliproxy ([a-z][a-z-]*(?: [a-z-]+)?)", f"{SHELL}\n{INLINE}")))


@pytest.mark.parametrize("words", SHOWN)
def test_every_command_shown_exists(words):
    first, *rest = words.split()
    assert first in cli.COMMANDS
    command = cli.load(cli.COMMANDS[first].place)
    if isinstance(command, click.Group) and rest:
        assert rest[0] in command.commands


USED = sorted(
    {
        (command, option)
        for command, rest in re.findall(r"\bheliproxy ([a-z-]+)([^|)&\n]*)", f"{SHELL}\n{INLINE}")
        for option in re.findall(r"(?<= )--[a-z][a-z-]*", rest.partition(" -- ")[0])
    }
)


@pytest.mark.parametrize(("command", "option"), USED)
def test_every_option_shown_exists(command, option):
    names = {o for name, c in LEAVES.items() if name.split()[0] == command for p in c.params for o in p.opts}
    assert option in names


def anchors() -> set[str]:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "certs/README.md", "tests/README.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        assert not file or (path.parent / file).exists(), target
        if anchor and not file and path.name == "README.md" and path.parent == ROOT:
            assert anchor in anchors(), target


def test_changelog_has_an_unreleased_part_with_entries():
    assert re.search(r"^## Unreleased\n+(?:.+\n+)*?- ", CHANGELOG, re.MULTILINE)


def test_notice_names_what_is_bundled():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in ("o200k_base", "cl100k_base", "gpt-tokenizer", "litellm", "uPlot"):
        assert name in notice
