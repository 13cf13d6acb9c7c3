from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from heliproxy import certs, system_trust
from heliproxy.certs_cli import certs_command
from heliproxy.hosts import CA_HOSTS


@pytest.fixture
def cert(home) -> Path:
    return certs.ensure_ca(home, CA_HOSTS).cert


@pytest.mark.parametrize("store", system_trust.STORES)
def test_install_and_uninstall_leave_no_trace(cert, tmp_path, store):
    folder = tmp_path / store.folder.lstrip("/")
    folder.mkdir(parents=True)
    ran: list[tuple[str, ...]] = []
    assert system_trust.install(cert, tmp_path, ran.append).endswith(f"run `{' '.join(store.command)}` in that system")
    assert system_trust.installed(cert, tmp_path)
    assert [p.name for p in folder.iterdir()] == [store.file]
    system_trust.uninstall(cert, tmp_path, ran.append)
    assert not list(folder.iterdir())
    assert not system_trust.installed(cert, tmp_path)
    assert system_trust.uninstall(cert, tmp_path, ran.append) == "nothing to remove"
    assert ran == []  # the command would change this system, not that one


def test_certificate_of_before_a_rotation_is_not_taken_for_installed(cert, home, tmp_path):
    (tmp_path / "usr/local/share/ca-certificates").mkdir(parents=True)
    system_trust.install(cert, tmp_path)
    certs.rotate_ca(home, CA_HOSTS)
    assert not system_trust.installed(cert, tmp_path)


def test_keychain_is_asked_on_a_mac(cert):
    ran: list[tuple[str, ...]] = []
    system_trust.install(cert, run=ran.append, platform="darwin")
    system_trust.uninstall(cert, run=ran.append, platform="darwin")
    assert [command[:2] for command in ran] == [("security", "add-trusted-cert"), ("security", "remove-trusted-cert")]


def test_failed_command_says_its_last_line():
    with pytest.raises(OSError, match="status 3: no luck"):
        system_trust.run_command(("sh", "-c", "echo no luck >&2; exit 3"))


def invoke(*args: object):
    return CliRunner().invoke(certs_command, [str(a) for a in args])


def test_commands_need_the_word_system_and_a_system_they_know(home, tmp_path):
    assert invoke("install", "--root", tmp_path).exit_code == 2
    result = invoke("install", "--system", "--root", tmp_path)
    assert result.exit_code == 1
    assert "install the package ca-certificates" in result.output
    (tmp_path / "etc/pki/ca-trust/source/anchors").mkdir(parents=True)
    assert "update-ca-trust" in invoke("install", "--system", "--root", tmp_path).output
    assert "removed" in invoke("uninstall", "--root", tmp_path).output


def test_jks_holds_the_certificate_and_nothing_else(home, tmp_path):
    keytool = shutil.which("keytool")
    if keytool is None:
        pytest.skip("no keytool here")
    assert invoke("export", "--form", "jks", "-o", tmp_path / "x.jks").exit_code == 0
    command = [keytool, "-list", "-keystore", str(tmp_path / "x.jks"), "-storepass", "changeit"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "contains 1 entry" in shown
    assert "trustedCertEntry" in shown


def test_jks_without_keytool_names_the_other_form(home, monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = invoke("export", "--form", "jks")
    assert result.exit_code == 1
    assert "--form p12" in result.output
