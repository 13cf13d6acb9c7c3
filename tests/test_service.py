from __future__ import annotations

import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from heliproxy import service

TRICKY = ["/srv/a b/heliproxy", "serve", "--default-header", 'Helicone-Property-X: 50% "of" $HOME\\']


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in (*service.KEPT, *service.KEPT_FILES, "HELIPROXY_SAVED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HELIPROXY_HOME", str(tmp_path / "ho me"))


def invoke(*args: str):
    return CliRunner().invoke(service.service_command, args)


def test_unit_starts_serve_with_the_arguments_given():
    result = invoke("--kind", "systemd", "--port", "9000")
    assert result.exit_code == 0, result.output
    (line,) = [li for li in result.output.splitlines() if li.startswith("ExecStart=")]
    assert shlex.split(line.removeprefix("ExecStart="))[-3:] == ["serve", "--port", "9000"]
    assert 'Environment="HELIPROXY_HOME=' in result.output


def test_words_reach_systemd_unchanged():
    line = next(li for li in service.unit(TRICKY, {}).splitlines() if li.startswith("ExecStart="))
    assert line == (
        'ExecStart="/srv/a b/heliproxy" serve --default-header "Helicone-Property-X: 50%% \\"of\\" $$HOME\\\\"'
    )


def test_systemd_finds_no_fault_with_it(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    file = tmp_path / "heliproxy.service"
    file.write_text(service.unit([sys.executable, "-c", "50% $X"], {"A": "b c"}))
    command = ["systemd-analyze", "verify", "--user", "--man=no", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert "heliproxy.service" not in shown.stderr


def test_plist_holds_command_and_environment(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.corp:3128")
    result = invoke("--kind", "launchd")
    found = plistlib.loads(result.output.encode())
    assert found["ProgramArguments"][-1] == "serve"
    assert found["EnvironmentVariables"]["HTTPS_PROXY"] == "http://proxy.corp:3128"
    assert found["Label"] == service.LABEL


def test_session_of_ours_is_not_taken_for_a_company(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:8080")
    monkeypatch.setenv("HELIPROXY_SAVED", '{"HTTPS_PROXY": null}')
    assert "HTTPS_PROXY" not in invoke("--kind", "systemd").output


def test_wrong_argument_is_found_now():
    assert invoke("--port", "none").exit_code == 2
    assert invoke("--frobnicate").exit_code == 2


def test_own_command_can_be_started_from_anywhere(tmp_path, monkeypatch):
    program = tmp_path / "heliproxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert service.own_command(str(program)) == [str(program)]
    monkeypatch.chdir(tmp_path)
    assert service.own_command("./heliproxy") == [str(Path.cwd() / "heliproxy")]
    assert service.own_command("/x/__main__.py") == [sys.executable, "-m", "heliproxy"]
