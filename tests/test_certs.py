from __future__ import annotations

import ipaddress
import os
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import httpx
import pytest
from cryptography import x509
from mitmproxy.certs import CertStore

from fakes import Upstream, json_answer
from heliproxy import certs
from running import running

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOSTS = ("openai.com", "api.anthropic.com")


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make_root(path: Path, name: str = "corp") -> Path:
    """A company root of its own, as somebody else would have made it."""
    made = certs.ensure_ca(path / f"{name}-home", ["corp.example"])
    target = path / f"{name}.pem"
    target.write_bytes(made.cert.read_bytes())
    return target


def handshake(server_pem: Path, trusted: Path, host: str) -> None:
    """A TLS handshake in memory. Raises ssl.SSLCertVerificationError when the client refuses."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server_pem)
    client_context = ssl.create_default_context(cafile=str(trusted))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.cipher()


def leaf(ca: certs.CaPaths, folder: Path, *names: x509.GeneralName) -> Path:
    """A server key and certificate for these names, as mitmproxy makes it from our authority."""
    entry = CertStore.from_store(ca.folder, "mitmproxy", 2048).get_cert(str(names[0].value), names)
    target = folder / "leaf.pem"
    target.write_bytes(ca.key_and_cert.read_bytes().split(b"-----BEGIN CERTIFICATE")[0] + entry.cert.to_pem())
    return target


def test_key_is_private_and_the_folder_too(tmp_path):
    previous = os.umask(0)
    try:
        ca = certs.ensure_ca(tmp_path / "home", HOSTS)
    finally:
        os.umask(previous)
    assert (mode(tmp_path / "home"), mode(ca.folder), mode(ca.key_and_cert)) == (0o700, 0o700, 0o600)
    assert b"PRIVATE" not in ca.cert.read_bytes()


def test_certificate_says_what_it_may_do(tmp_path):
    cert = read(certs.ensure_ca(tmp_path, HOSTS, NOW).cert)
    basic = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    constraints = cert.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert certs.permitted_hosts(cert) == ("api.anthropic.com", "openai.com")
    assert cert.not_valid_after_utc - cert.not_valid_before_utc == timedelta(days=397)
    assert cert.not_valid_before_utc < NOW
    assert "heliproxy local CA " in cert.subject.rfc4514_string()


def test_each_installation_has_its_own(tmp_path):
    one, two = (read(certs.ensure_ca(tmp_path / name, HOSTS).cert) for name in "ab")
    assert one.subject != two.subject
    assert one.public_key() != two.public_key()


def test_second_use_changes_nothing(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS, NOW)
    before = ca.key_and_cert.read_bytes()
    certs.ensure_ca(tmp_path, ["OpenAI.com.", "*.api.anthropic.com", "api.openai.com"], NOW + timedelta(days=300))
    assert ca.key_and_cert.read_bytes() == before


@pytest.mark.parametrize(
    ("later", "hosts", "expected"),
    [
        (timedelta(days=1), ["llm.corp.example"], ("api.anthropic.com", "llm.corp.example", "openai.com")),
        (timedelta(days=370), ["openai.com"], ("openai.com",)),
        (timedelta(days=500), HOSTS, ("api.anthropic.com", "openai.com")),
        (timedelta(days=-30), HOSTS, ("api.anthropic.com", "openai.com")),
    ],
    ids=["new host is added", "expires soon", "expired", "clock was wrong"],
)
def test_is_certified_anew_with_the_same_key(tmp_path, later, hosts, expected):
    ca = certs.ensure_ca(tmp_path, HOSTS, NOW)
    before = read(ca.cert)
    certs.ensure_ca(tmp_path, hosts, NOW + later)
    after = read(ca.cert)
    assert after.serial_number != before.serial_number
    assert (after.public_key(), after.subject) == (before.public_key(), before.subject)
    assert certs.permitted_hosts(after) == expected


def test_rotation_makes_a_new_key(tmp_path):
    before = read(certs.ensure_ca(tmp_path, HOSTS).cert)
    after = read(certs.rotate_ca(tmp_path, HOSTS).cert)
    assert after.public_key() != before.public_key()
    assert after.subject != before.subject


@pytest.mark.parametrize("junk", [b"", b"not a key", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_broken_file_is_replaced(tmp_path, junk, caplog):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    ca.key_and_cert.write_bytes(junk)
    certs.ensure_ca(tmp_path, HOSTS)
    assert certs.permitted_hosts(read(ca.key_and_cert)) == ("api.anthropic.com", "openai.com")
    assert "making a new authority" in caplog.text


def test_loosened_or_lost_files_are_repaired(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    cert = ca.cert.read_bytes()
    ca.key_and_cert.chmod(0o644)
    ca.folder.chmod(0o755)
    ca.cert.unlink()
    certs.ensure_ca(tmp_path, HOSTS)
    assert (mode(ca.folder), mode(ca.key_and_cert), ca.cert.read_bytes()) == (0o700, 0o600, cert)


def test_authority_put_there_by_somebody_else_stays(tmp_path):
    ca = certs.ca_paths(tmp_path)
    CertStore.create_store(ca.folder, "mitmproxy", 2048)
    before = ca.key_and_cert.read_bytes()
    certs.ensure_ca(tmp_path, HOSTS)
    assert ca.key_and_cert.read_bytes() == before
    assert mode(ca.key_and_cert) == 0o600


def test_processes_starting_at_once_agree(tmp_path):
    script = (
        f"from heliproxy import certs; certs.ensure_ca(__import__('pathlib').Path({str(tmp_path)!r}), ['a.example'])"
    )
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [p.wait() for p in started] == [0, 0, 0]
    ca = certs.ca_paths(tmp_path)
    assert read(ca.key_and_cert) == read(ca.cert)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["API.OpenAI.com", "openai.com."], ("openai.com",)),
        (["*.helicone.ai", ".helicone.ai", "helicone.ai"], ("helicone.ai",)),
        (["bücher.example"], ("xn--bcher-kva.example",)),
        (["192.0.2.7", "[2001:db8::1]"], ("192.0.2.7", "2001:db8::1")),
        (["notopenai.com", "openai.com"], ("notopenai.com", "openai.com")),
        (["localhost"], ("localhost",)),
    ],
)
def test_hosts_are_normalised(hosts, expected):
    assert certs.minimal_hosts(hosts) == expected


@pytest.mark.parametrize("host", ["", "*", "a b", "https://x", "a/b", "x:1", "a..b"])
def test_what_is_no_host_is_refused_by_name(tmp_path, host):
    with pytest.raises(ValueError, match="is not a host name"):
        certs.ensure_ca(tmp_path, ["openai.com", host])


def test_no_host_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one host"):
        certs.ensure_ca(tmp_path, [])


@pytest.mark.parametrize("host", ["openai.com", "api.openai.com", "eu.api.openai.com", "api.anthropic.com"])
def test_client_accepts_a_permitted_host(tmp_path, host):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    handshake(leaf(ca, tmp_path, x509.DNSName(host)), certs.bundle(tmp_path), host)


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName("bank.example"),
        x509.DNSName("evilopenai.com"),
        x509.DNSName("console.anthropic.com"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
    ],
)
def test_client_refuses_any_other_host(tmp_path, name):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    server = leaf(ca, tmp_path, name)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree|excluded subtree"):
        handshake(server, ca.cert, str(name.value))


def test_address_among_the_hosts_is_permitted(tmp_path):
    ca = certs.ensure_ca(tmp_path, ["openai.com", "192.0.2.1"])
    handshake(leaf(ca, tmp_path, x509.IPAddress(ipaddress.ip_address("192.0.2.1"))), ca.cert, "192.0.2.1")
    handshake(leaf(ca, tmp_path, x509.DNSName("api.openai.com")), ca.cert, "api.openai.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(leaf(ca, tmp_path, x509.IPAddress(ipaddress.ip_address("192.0.2.2"))), ca.cert, "192.0.2.2")


def test_leaf_of_before_is_trusted_after_certifying_anew(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    server = leaf(ca, tmp_path, x509.DNSName("api.openai.com"))
    certs.ensure_ca(tmp_path, ["new.example"])
    handshake(server, certs.bundle(tmp_path), "api.openai.com")


def blocks(path: Path) -> int:
    return certs.count_certificates(path.read_bytes())


def test_bundle_has_the_default_roots_and_ours(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    made = certs.bundle(tmp_path)
    assert blocks(made) > blocks(Path(certifi.where()))
    context = ssl.create_default_context(cafile=str(made))
    assert ssl.PEM_cert_to_DER_cert(ca.cert.read_text()) in context.get_ca_certs(binary_form=True)


def test_bundle_keeps_the_users_own_roots(tmp_path):
    certs.ensure_ca(tmp_path, HOSTS)
    corp = make_root(tmp_path)
    made = certs.bundle(tmp_path, corp)
    assert blocks(made) == 2
    assert made != certs.bundle(tmp_path)
    assert made != certs.bundle(tmp_path, make_root(tmp_path, "other"))


def test_bundle_is_written_only_when_something_changed(tmp_path):
    certs.ensure_ca(tmp_path, HOSTS, NOW)
    corp = make_root(tmp_path)
    made = certs.bundle(tmp_path, corp)
    first = made.stat().st_ino
    assert certs.bundle(tmp_path, corp).stat().st_ino == first
    certs.ensure_ca(tmp_path, ["more.example"], NOW)
    assert certs.bundle(tmp_path, corp).stat().st_ino != first
    corp.write_bytes(corp.read_bytes() + make_root(tmp_path, "second").read_bytes())
    assert blocks(certs.bundle(tmp_path, corp)) == 3


def test_bundle_of_a_bundle_is_the_bundle_of_its_base(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    corp = make_root(tmp_path)
    made = certs.bundle(tmp_path, corp)
    assert certs.bundle(tmp_path, made) == made
    assert certs.bundle(tmp_path, certs.bundle(tmp_path)) == certs.bundle(tmp_path)
    assert certs.bundle(tmp_path, ca.cert) == certs.bundle(tmp_path)


def test_bundle_survives_odd_bases(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    corp = make_root(tmp_path)
    crlf = tmp_path / "crlf.pem"
    crlf.write_bytes(b"\xff\xfe comment \r\n" + corp.read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert blocks(certs.bundle(tmp_path, crlf)) == 2
    assert len(x509.load_pem_x509_certificates(certs.bundle(tmp_path, crlf).read_bytes())) == 2
    doubled = tmp_path / "doubled.pem"
    doubled.write_bytes(ca.cert.read_bytes() * 2)
    assert blocks(certs.bundle(tmp_path, doubled)) == 1


def test_missing_base_raises(tmp_path):
    certs.ensure_ca(tmp_path, HOSTS)
    with pytest.raises(OSError, match=r"nowhere\.pem"):
        certs.bundle(tmp_path, tmp_path / "nowhere.pem")


def test_readers_never_see_half_a_bundle(tmp_path):
    certs.ensure_ca(tmp_path, HOSTS, NOW)
    made = certs.bundle(tmp_path)
    expected = blocks(made)
    stop = threading.Event()
    seen: set[int] = set()

    def read_on() -> None:
        while not stop.is_set():
            seen.add(blocks(made))

    reader = threading.Thread(target=read_on)
    reader.start()
    for number in range(4):
        certs.ensure_ca(tmp_path, [f"h{number}.example"], NOW)
        certs.bundle(tmp_path)
    stop.set()
    reader.join()
    assert seen <= {expected}
    assert not [p for p in made.parent.iterdir() if p.name.startswith(".")]


def test_extra_certs_is_ours_alone_or_with_the_users(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    corp = make_root(tmp_path)
    assert certs.extra_certs(tmp_path, None) == ca.cert
    assert blocks(certs.extra_certs(tmp_path, corp)) == 2
    assert certs.extra_certs(tmp_path, ca.cert) == ca.cert
    assert certs.extra_certs(tmp_path, certs.extra_certs(tmp_path, corp)) == certs.extra_certs(tmp_path, corp)


def test_upstreams_are_trusted_as_the_user_trusts_them(tmp_path):
    ca = certs.ensure_ca(tmp_path, HOSTS)
    corp, option = make_root(tmp_path), make_root(tmp_path, "option")
    plain = certs.upstream_trust(tmp_path, None, {})
    env = {"REQUESTS_CA_BUNDLE": str(corp), "SSL_CERT_FILE": str(certs.bundle(tmp_path)), "CURL_CA_BUNDLE": "/nowhere"}
    full = certs.upstream_trust(tmp_path, option, env)
    assert blocks(full) == blocks(plain) + 2
    assert ca.cert.read_bytes().strip() not in full.read_bytes()


def test_upstream_ca_without_a_certificate_is_refused(tmp_path):
    certs.ensure_ca(tmp_path, HOSTS)
    empty = tmp_path / "empty.pem"
    empty.write_text("hello")
    with pytest.raises(OSError, match="holds no certificate"):
        certs.upstream_trust(tmp_path, empty, {})


def test_export_forms_hold_the_certificate_and_no_key(tmp_path):
    from cryptography.hazmat.primitives.serialization import pkcs12

    ca = certs.ensure_ca(tmp_path, HOSTS)
    cert = read(ca.cert)
    assert x509.load_pem_x509_certificate(certs.export(ca, "pem")) == cert
    assert x509.load_der_x509_certificate(certs.export(ca, "der")) == cert
    store = pkcs12.load_pkcs12(certs.export(ca, "p12", b"changeit"), b"changeit")
    assert store.key is None
    assert [c.certificate for c in store.additional_certs] == [cert]
    with pytest.raises(ValueError, match="jpg"):
        certs.export(ca, "jpg")


def test_a_client_without_the_certificate_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Upstream(lambda _: json_answer({})) as up,
        running(tmp_path / "home", up) as run,
        httpx.Client(proxy=run.url, timeout=20, trust_env=False) as client,
    ):
        for _ in range(2):
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                client.get("https://api.openai.com/v1/models")
    (said,) = [record.getMessage() for record in caplog.records if "heliproxy env" in record.getMessage()]
    assert said.count("certificate for api.openai.com") == 1
    assert said.endswith("; `heliproxy env` prints the variables that a client needs")
