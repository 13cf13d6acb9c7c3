"""A stolen key of ours is of no use against a bank: clients refuse what it signs outside the LLM hosts."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fakes import Answer, Upstream
from heliproxy import certs
from heliproxy.hosts import CA_HOSTS

GO = """package main
import ("crypto/tls"; "crypto/x509"; "fmt"; "os")
func main() {
\tpem, _ := os.ReadFile(os.Args[1])
\tpool := x509.NewCertPool()
\tpool.AppendCertsFromPEM(pem)
\t_, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[2], &tls.Config{RootCAs: pool, ServerName: os.Args[3]})
\tif err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
}
"""
PYTHON = """if True:
    import socket, ssl, sys
    ca, port, name = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    context.wrap_socket(socket.create_connection(("127.0.0.1", int(port))), server_hostname=name).close()
"""
NODE = """const [ca, port, servername] = process.argv.slice(1)
const options = { host: '127.0.0.1', port, servername, ca: require('fs').readFileSync(ca) }
require('tls').connect(options, () => process.exit(0)).on('error', e => { console.error(e); process.exit(1) })"""
RUBY = """require "openssl"; require "socket"
ca, port, name = ARGV
context = OpenSSL::SSL::SSLContext.new
context.set_params(ca_file: ca)
tls = OpenSSL::SSL::SSLSocket.new(TCPSocket.new("127.0.0.1", port.to_i), context)
tls.hostname = name
tls.connect
tls.post_connection_check(name)"""


def leaf(home: Path, folder: Path, name: str) -> Path:
    """A server certificate for `name`, signed with our authority's key, as a thief of the key would make it."""
    data = certs.ca_paths(home).key_and_cert.read_bytes()
    ca_key, ca = load_pem_private_key(data, None), x509.load_pem_x509_certificate(data)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "A bank")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = folder / f"{name}.pem"
    key_pem = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(key_pem + cert.public_bytes(pem))
    return file


def serving(home: Path, folder: Path, name: str) -> Upstream:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(leaf(home, folder, name))
    return Upstream(lambda _: Answer(body=b"money"), context=context)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("bank")
    home = folder / "home"
    ca = certs.ensure_ca(home, CA_HOSTS).cert
    with serving(home, folder, "bank.example") as bank, serving(home, folder, "api.openai.com") as provider:
        yield ca, {"bank.example": bank.port, "api.openai.com": provider.port}


def command(client: str, ca: Path, port: int, name: str, folder: Path) -> list[str]:
    arguments = [str(ca), str(port), name]
    match client:
        case "curl":
            return [
                "curl",
                "-sS",
                "--cacert",
                str(ca),
                "--resolve",
                f"{name}:{port}:127.0.0.1",
                f"https://{name}:{port}/",
            ]
        case "python":
            return [sys.executable, "-c", PYTHON, *arguments]
        case "node":
            return ["node", "-e", NODE, *arguments]
        case "ruby":
            return ["ruby", "-e", RUBY, *arguments]
    (folder / "bank.go").write_text(GO)
    return ["go", "run", str(folder / "bank.go"), *arguments]


@pytest.mark.parametrize("client", ["curl", "python", "node", "go", "ruby"])
def test_leaf_for_a_bank_is_refused_and_one_for_a_provider_is_not(servers, tmp_path, client):
    ca, ports = servers
    if client != "python" and shutil.which(client) is None:
        pytest.skip(f"{client} is not installed")
    cache = Path.home() / ".cache" / "heliproxy-tests" / "clients"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    env["GOCACHE"] = str(cache / "go" if cache.is_dir() else tmp_path / "go")
    results = {}
    for name, port in ports.items():
        done = subprocess.run(command(client, ca, port, name, tmp_path), env=env, capture_output=True, text=True)
        results[name] = (done.returncode == 0, done.stderr.lower())
    assert results["api.openai.com"][0], results["api.openai.com"][1]
    accepted, said = results["bank.example"]
    assert not accepted
    assert "permitted subtree" in said or "permitted by any constraint" in said or "permitted_violation" in said, said
