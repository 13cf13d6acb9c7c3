from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from heliproxy import __version__, cli
from heliproxy.options import proxy_options
from heliproxy.settings import Settings, Upstream


def invoke(*args: str, command: click.Command = cli.main):
    return CliRunner().invoke(command, args)


@click.command()
@proxy_options()
def show_settings(settings: Settings) -> None:
    show_settings.seen = settings  # type: ignore[attr-defined]


def settings_of(*args: str) -> Settings:
    result = invoke(*args, command=show_settings)
    assert result.exit_code == 0, result.output
    return show_settings.seen  # type: ignore[attr-defined]


def test_version_is_the_package_version():
    assert invoke("--version").output == f"heliproxy {__version__}\n"


def test_help_lists_every_command_with_a_sentence():
    output = invoke("--help").output
    for section, entries in cli.SECTIONS.items():
        assert f"{section}:" in output
        for name, entry in entries.items():
            assert name in output
            assert entry.help.endswith(".")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from heliproxy.cli import main; main(['--help'], standalone_mode=False);"
        "print([m for m in ('mitmproxy', 'starlette', 'tiktoken', 'genai_prices', 'sqlite_utils', 'asyncio')"
        " if m in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr == "[]\n"


def test_unknown_command_is_a_usage_error():
    result = invoke("frobnicate")
    assert result.exit_code == 2
    assert "frobnicate" in result.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_loads_and_has_help(name: str):
    module = f"heliproxy.{cli.COMMANDS[name].place.split(':')[0]}"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    result = invoke(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_addon_path_names_a_script_alone_in_its_folder():
    path = Path(invoke("addon-path").output.strip())
    # mitmproxy leaves the folder of a script first on sys.path: a neighbour would shadow other modules.
    assert [p.name for p in path.parent.iterdir() if p.name != "__pycache__"] == [path.name]
    assert "addons" in path.read_text()


def test_defaults_are_the_documented_ports(home):
    settings = settings_of()
    assert (settings.home, settings.port, settings.api_port, settings.upstreams) == (home, 8080, 8585, {})


def test_options_become_settings(tmp_path):
    settings = settings_of(
        *("--home", str(tmp_path), "--port", "0", "--api-port", "9"),
        *("--upstream", "api.openai.com=http://127.0.0.1:9/x/", "--upstream", "a.b=https://c"),
        *("--set", "http2=false", "--default-header", "Helicone-Property-App: ci", "--stream-usage"),
    )
    assert settings == Settings(
        home=tmp_path,
        port=0,
        api_port=9,
        upstreams={
            "api.openai.com": Upstream("http", "127.0.0.1", 9, "/x"),
            "a.b": Upstream("https", "c", 443),
        },
        mitm_options=("http2=false",),
        default_headers=("Helicone-Property-App: ci",),
        stream_usage=True,
    )


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--upstream", "nonsense"), "nonsense"),
        (("--upstream", "h=ftp://x"), "ftp://x"),
        (("--default-header", "no colon"), "no colon"),
        (("--default-header", "a: b\nc: d"), "expected 'Name: value'"),
        (("--default-header", "X-Foo: 1"), "--default-header"),
        (("--default-header", "X-Foo: 1"), "only Helicone-* headers"),
        (("--port", "70000"), "70000"),
        (("--upstream-ca", "missing.pem"), "missing.pem"),
    ],
)
def test_bad_option_is_a_usage_error_that_names_the_value(args, named):
    result = invoke(*args, command=show_settings)
    assert result.exit_code == 2
    assert named in result.output
