from __future__ import annotations

import pytest
from click.testing import CliRunner
from cryptography import x509

from heliproxy import certs
from heliproxy.certs_cli import certs_command


def invoke(*args):
    result = CliRunner().invoke(certs_command, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result


def test_first_use_makes_the_authority_and_path_names_it(home):
    assert invoke("path").output == f"{certs.ca_paths(home).cert}\n"
    assert certs.ca_paths(home).key_and_cert.exists()
    assert invoke("path", "--form", "bundle").output == f"{certs.bundle(home)}\n"


def test_show_names_the_hosts(home):
    output = invoke("show").output
    assert "heliproxy local CA" in output
    assert "helicone.ai" in output


@pytest.mark.parametrize("form", ["pem", "der", "p12", "bundle"])
def test_export_never_has_the_key(home, tmp_path, form):
    to_stdout = invoke("export", "--form", form).stdout_bytes
    invoke("export", "--form", form, "-o", tmp_path / "out")
    assert b"PRIVATE" not in to_stdout
    assert len((tmp_path / "out").read_bytes()) == len(to_stdout)
    if form == "der":
        assert "heliproxy" in x509.load_der_x509_certificate(to_stdout).subject.rfc4514_string()


def test_rotation_replaces_the_key(home):
    invoke("path")
    before = certs.ca_paths(home).key_and_cert.read_bytes()
    invoke("rotate")
    assert certs.ca_paths(home).key_and_cert.read_bytes()[:300] != before[:300]


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(certs_command, ["rotate", "--home", str(tmp_path / "file" / "below")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
