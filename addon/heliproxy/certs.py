"""The certificate authority of this installation, and the trust bundles built around it.

The authority is made on first use in `home/ca`, in mitmproxy's file layout, so that mitmproxy signs with it when
`confdir` is that folder. It is valid for the LLM and Helicone hosts alone: a critical name constraint (RFC 5280
§4.2.1.10) makes clients refuse anything else signed with its key, so a stolen key cannot impersonate a bank.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import os
import re
import secrets
import ssl
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from heliproxy.home import make_private_folder

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

logger = logging.getLogger(__name__)

LIFETIME = timedelta(days=397)
"""What Apple's clients accept at most is 398 days."""
RENEW_WITHIN = timedelta(days=30)
BACKDATED = timedelta(days=2)
"""Clocks differ; mitmproxy backdates its leaf certificates as much."""
ORGANIZATION = "heliproxy"
BUNDLE_FOLDER = "bundles"

TRUST_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
)
"""Where a user's company roots may be named; an upstream is trusted if any of them vouches for it."""

SYSTEM_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, FreeBSD
)

_PEM = re.compile(rb"-----BEGIN ((?:TRUSTED |X509 )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
_BASE_LINE = re.compile(rb"\A# heliproxy: bundle of (.*)\n")


@dataclass(frozen=True, slots=True)
class CaPaths:
    """Where the authority's files are."""

    folder: Path
    """What mitmproxy gets as `confdir`."""
    key_and_cert: Path
    cert: Path


def ca_paths(home: Path) -> CaPaths:
    """The places of the authority's files, made or not."""
    folder = home / "ca"
    return CaPaths(folder, folder / "mitmproxy-ca.pem", folder / "mitmproxy-ca-cert.pem")


@dataclass(frozen=True, slots=True)
class Authority:
    """What the certificate of an authority says."""

    not_before: datetime
    not_after: datetime
    hosts: tuple[str, ...]
    """The domains it is limited to; empty when it is not limited."""
    is_ours: bool
    """Made here, and not put there by the user."""


def read_authority(home: Path) -> Authority:
    """Look at the authority as it is, changing nothing.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: the file holds no key with its certificate.
    """
    paths = ca_paths(home)
    if not paths.key_and_cert.exists():
        raise FileNotFoundError(f"no certificate authority at {paths.key_and_cert}")
    current = _read_ca(paths)
    if current is None:
        raise ValueError("not a private key and its certificate in PEM form")
    cert = current[1]
    return Authority(cert.not_valid_before_utc, cert.not_valid_after_utc, permitted_hosts(cert), _is_ours(cert))


def ensure_ca(home: Path, hosts: Iterable[str], now: datetime | None = None) -> CaPaths:
    """Make the authority, or certify its key anew when it expires soon or a host is not covered yet.

    `hosts` are names that stand for themselves and all below them, or IP addresses. Hosts once covered stay covered
    until the certificate expires: another process with other hosts may be using it. An authority that
    somebody else put there is left alone.

    Raises:
        OSError: the files cannot be written.
        ValueError: a host is not a name, or there is none.
    """
    wanted = minimal_hosts(hosts)
    if not wanted:
        raise ValueError("a certificate authority needs at least one host it may sign for")
    at = datetime.now(UTC) if now is None else now
    paths = ca_paths(home)
    make_private_folder(paths.folder)
    if paths.folder.stat().st_mode & 0o077:
        paths.folder.chmod(0o700)
    with _locked(paths.folder):
        current = _read_ca(paths)
        if current is None:
            _write_ca(paths, _new_key(), wanted, at)
            return paths
        key, cert = current
        if not _is_ours(cert):
            _tidy(paths, cert)
        elif cert.not_valid_after_utc - at < RENEW_WITHIN or at < cert.not_valid_before_utc:
            _write_ca(paths, key, wanted, at)
        elif (covered := minimal_hosts((*permitted_hosts(cert), *wanted))) != minimal_hosts(permitted_hosts(cert)):
            _write_ca(paths, key, covered, at)
        else:
            _tidy(paths, cert)
    return paths


def prepare(home: Path, upstreams: Iterable[str], upstream_ca: Path | None) -> tuple[CaPaths, Path]:
    """Make what a proxy needs to start: its authority, also for redirected hosts, and the roots it trusts itself.

    Raises:
        OSError: `upstream_ca` cannot be read, or a file cannot be written.
    """
    from heliproxy.hosts import CA_HOSTS, LOCAL_LABELS

    own = tuple(host for host in upstreams if host not in LOCAL_LABELS)
    return ensure_ca(home, CA_HOSTS + own), upstream_trust(home, upstream_ca)


def rotate_ca(home: Path, hosts: Iterable[str], now: datetime | None = None) -> CaPaths:
    """Replace the authority by a new one with a new key. Raises as `ensure_ca`."""
    wanted = minimal_hosts(hosts)
    paths = ca_paths(home)
    make_private_folder(paths.folder)
    with _locked(paths.folder):
        _write_ca(paths, _new_key(), wanted, datetime.now(UTC) if now is None else now)
    return paths


def minimal_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """Normalise host names, and leave out those below another one.

    Raises:
        ValueError: names the value that is not a host name or IP address.
    """
    names = {_normal_host(host) for host in hosts}
    return tuple(sorted(n for n in names if not any(parent in names for parent in _parents(n))))


def _parents(name: str) -> Iterator[str]:
    _, dot, rest = name.partition(".")
    while dot:
        yield rest
        _, dot, rest = rest.partition(".")


def _normal_host(host: str) -> str:
    name = host.strip().lower().removeprefix("*").strip(".")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(name.strip("[]")))
    with contextlib.suppress(UnicodeError):
        name = name.encode("idna").decode()
        if re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
            return name
    raise ValueError(f"{host!r} is not a host name or IP address")


def permitted_hosts(cert: x509.Certificate) -> tuple[str, ...]:
    """The hosts a certificate's name constraint permits; empty when it has none."""
    from cryptography import x509

    try:
        subtrees = cert.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or ()
    except x509.ExtensionNotFound:
        return ()
    names = (t.value.network_address if isinstance(t, x509.IPAddress) else t.value for t in subtrees)  # type: ignore[union-attr]
    return tuple(dict.fromkeys(map(str, names)))


def _new_key() -> EllipticCurvePrivateKey:
    # mitmproxy gives every leaf this same key, so it signs each handshake: P-256 is much faster there than RSA.
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _issue(
    key: EllipticCurvePrivateKey, subject: x509.Name | None, hosts: tuple[str, ...], at: datetime
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    if subject is None:
        # A random part, because two authorities of one name and different keys confuse trust stores.
        name = f"heliproxy local CA {secrets.token_hex(4)}"
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at - BACKDATED + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_constraints(hosts), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _constraints(hosts: tuple[str, ...]) -> x509.NameConstraints:
    from cryptography import x509

    permitted: list[x509.GeneralName] = []
    excluded: list[x509.GeneralName] = []
    addresses = [ipaddress.ip_network(h) for h in hosts if _is_address(h)]
    # An IPv4 address is named both ways: mitmproxy writes it into the common name too, where OpenSSL takes it for a
    # DNS name.
    permitted += [x509.DNSName(h) for h in hosts if ":" not in h]
    permitted += [x509.IPAddress(network) for network in addresses]
    # A kind of name that no subtree mentions is unconstrained, so addresses must be mentioned either way.
    if not addresses:
        excluded += [x509.IPAddress(ipaddress.ip_network(n)) for n in ("0.0.0.0/0", "::/0")]
    return x509.NameConstraints(permitted, excluded or None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_ours(cert: x509.Certificate) -> bool:
    from cryptography.x509.oid import NameOID

    return any(a.value == ORGANIZATION for a in cert.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))


def _read_ca(paths: CaPaths) -> tuple[EllipticCurvePrivateKey, x509.Certificate] | None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data = paths.key_and_cert.read_bytes()
    except FileNotFoundError:
        return None
    try:
        key, cert = load_pem_private_key(data, None), x509.load_pem_x509_certificate(data)
    except (ValueError, TypeError) as e:
        logger.warning("%s cannot be read (%s): making a new authority", paths.key_and_cert, e)
        return None
    if key.public_key() != cert.public_key():
        logger.warning("%s holds a key and a certificate of another one: making a new authority", paths.key_and_cert)
        return None
    return key, cert  # type: ignore[return-value]  # another kind of key is somebody else's, and only looked at


def _write_ca(paths: CaPaths, key: EllipticCurvePrivateKey, hosts: tuple[str, ...], at: datetime) -> None:
    from cryptography.hazmat.primitives import serialization

    old = _read_ca(paths)
    same_key = old is not None and old[0].public_key() == key.public_key()
    cert = _issue(key, old[1].subject if old and same_key else None, hosts, at)
    pem = cert.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(paths.key_and_cert, key_pem + pem, 0o600)
    write_atomically(paths.cert, pem, 0o600)


def _tidy(paths: CaPaths, cert: x509.Certificate) -> None:
    """Repair what may have been lost or loosened beside the key."""
    from cryptography.hazmat.primitives import serialization

    if paths.key_and_cert.stat().st_mode & 0o077:
        paths.key_and_cert.chmod(0o600)
    pem = cert.public_bytes(serialization.Encoding.PEM)
    if not paths.cert.exists() or paths.cert.read_bytes() != pem:
        write_atomically(paths.cert, pem, 0o600)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two processes from making the authority at once."""
    try:
        import fcntl
    except ImportError:  # Windows: the rename is atomic, the last one wins
        yield
        return
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by a new file with exactly this content and mode, never seen half written. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def bundle(home: Path, base: Path | None = None) -> Path:
    """Return a file with the certificates of `base` and ours, written only when one of them changed.

    `base` is the user's own bundle; None stands for certifi's together with the system's, because programs that
    get this file used the one or the other before. A bundle of ours as base stands for what it was made of, so
    that a `run` inside a `run` adds nothing. Our authority must exist.

    Raises:
        OSError: `base` or our certificate cannot be read, or the bundle cannot be written.
    """
    ours = ca_paths(home).cert
    original = base_of(base, ours) if base is not None else None
    if original is None:
        return _build(home / BUNDLE_FOLDER / "bundle.pem", "", [*default_roots(), ours])
    digest = hashlib.sha256(os.fsencode(original.absolute())).hexdigest()[:12]
    return _build(home / BUNDLE_FOLDER / f"bundle-{digest}.pem", str(original.absolute()), [original, ours])


def extra_certs(home: Path, extra: Path | None) -> Path:
    """Return a file with our certificate alone, or with those of `extra`, for variables that add to a store.

    Raises as `bundle`.
    """
    ours = ca_paths(home).cert
    original = base_of(extra, ours) if extra is not None else None
    if original is None:
        return ours
    digest = hashlib.sha256(os.fsencode(original.absolute())).hexdigest()[:12]
    return _build(home / BUNDLE_FOLDER / f"extra-{digest}.pem", str(original.absolute()), [original, ours])


def base_of(path: Path, ours: Path) -> Path | None:
    """The file a bundle of ours was made of (None: the default roots, or our bare certificate); any other file itself.

    `ours` is our certificate.

    Raises OSError when it cannot be read.
    """
    seen = set()
    while path not in seen:
        seen.add(path)
        if path == ours:
            return None
        with path.open("rb") as file:
            match = _BASE_LINE.match(file.readline(4096))
        if match is None:
            return path
        if not match[1]:
            return None
        path = Path(os.fsdecode(match[1]))
    return None


def upstream_trust(home: Path, upstream_ca: Path | None, env: Mapping[str, str] | None = None) -> Path:
    """Return a file with every root that a program started here would trust, and `upstream_ca`.

    For mitmproxy's `ssl_verify_upstream_trusted_ca`, which replaces its own list. Our own authority is not in it.

    Raises:
        OSError: `upstream_ca` cannot be read, or the file cannot be written.
    """
    environ = os.environ if env is None else env
    ours = ca_paths(home).cert
    sources = default_roots()
    for name in TRUST_VARIABLES:
        path = user_file(environ.get(name))
        if path is not None and (original := base_of(path, ours)) is not None and original not in sources:
            sources.append(original)
    if upstream_ca is not None:
        if not count_certificates(upstream_ca.read_bytes()):
            raise OSError(f"{upstream_ca} holds no certificate in PEM form")
        sources.append(upstream_ca)
    digest = hashlib.sha256(os.fsencode("\0".join(str(s.absolute()) for s in sources))).hexdigest()[:12]
    return _build(home / BUNDLE_FOLDER / f"upstream-{digest}.pem", "", sources)


def default_roots() -> list[Path]:
    """The files whose roots programs trust when nothing is set: certifi's, and the system's where there is one."""
    import certifi

    found = [Path(certifi.where())]
    compiled_in = ssl.get_default_verify_paths().openssl_cafile
    for candidate in (compiled_in, *SYSTEM_STORES):
        path = Path(candidate)
        if path.is_file() and os.access(path, os.R_OK):
            found.append(path)
            break
    return found


def user_file(value: str | None) -> Path | None:
    """The file a trust variable names, if it can be read."""
    if not value:
        return None
    path = Path(value).expanduser()
    return path if path.is_file() and os.access(path, os.R_OK) else None


def count_certificates(data: bytes) -> int:
    """How many PEM certificates there are in `data`."""
    return sum(1 for _ in _PEM.finditer(data))


def pem_keys(data: bytes) -> set[bytes]:
    """The certificates in PEM data, in a form that can be compared whatever their line breaks."""
    return {b"".join(match[2].split()) for match in _PEM.finditer(data)}


def _build(target: Path, base: str, sources: list[Path]) -> Path:
    # The second line says what the file was made of: unchanged sources cost a few stat calls, not a rebuild.
    # resolve(): a link that now leads elsewhere is another source, even with the same size and time.
    facts = [(str(s.resolve()), (info := s.stat()).st_size, info.st_mtime_ns, info.st_ino) for s in sources]
    made_of = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()
    head = b"# heliproxy: bundle of %s\n# made of %s\n" % (os.fsencode(base), made_of.encode())
    try:
        with target.open("rb") as file:
            if file.read(len(head)) == head:
                return target
    except FileNotFoundError:
        make_private_folder(target.parent)
    seen: set[bytes] = set()
    blocks: list[bytes] = []
    for source in sources:
        for match in _PEM.finditer(source.read_bytes()):
            key = b"".join(match[2].split())
            if key not in seen:
                seen.add(key)
                blocks.append(match[0].replace(b"\r\n", b"\n") + b"\n")
    write_atomically(target, head + b"".join(blocks), 0o600)
    return target


def export(paths: CaPaths, form: str, password: bytes | None = None) -> bytes:
    """The certificate, never the key, as `pem`, `der` or `p12` (a trust store, encrypted when there is a password).

    Raises:
        OSError: it cannot be read.
        ValueError: the form is unknown.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import pkcs12

    cert = x509.load_pem_x509_certificate(paths.cert.read_bytes())
    if form == "pem":
        return cert.public_bytes(serialization.Encoding.PEM)
    if form == "der":
        return cert.public_bytes(serialization.Encoding.DER)
    if form == "p12":
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password)
        # Java reads a certificate in PKCS#12 as trusted only with this attribute, which the function for
        # trust stores sets.
        entry = pkcs12.PKCS12Certificate(cert, b"heliproxy")
        return pkcs12.serialize_java_truststore([entry], encryption)
    raise ValueError(f"unknown form {form!r}: expected pem, der or p12")


def php_folder(home: Path, roots: Path) -> Path:
    """Return a folder for PHP_INI_SCAN_DIR, in which a fragment makes curl and OpenSSL use `roots`. Raises OSError."""
    folder = home / BUNDLE_FOLDER / f"php-{roots.stem}"
    ini = f'; heliproxy: for PHP_INI_SCAN_DIR\ncurl.cainfo="{roots}"\nopenssl.cafile="{roots}"\n'.encode()
    target = folder / "heliproxy.ini"
    if not target.exists() or target.read_bytes() != ini:
        make_private_folder(folder)
        write_atomically(target, ini, 0o600)
    return folder


def java_store(home: Path, roots: Path) -> Path:
    """Return a Java trust store (PKCS#12, password `changeit`) with the certificates of `roots`. Raises OSError."""
    target = home / BUNDLE_FOLDER / f"{roots.stem}.jks.p12"
    if target.exists() and target.stat().st_mtime_ns >= roots.stat().st_mtime_ns:
        return target
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

    entries = []
    with warnings.catch_warnings():
        # Some old roots break RFC 5280 in their serial number. Java may judge that itself.
        warnings.simplefilter("ignore")
        for number, match in enumerate(_PEM.finditer(roots.read_bytes())):
            with contextlib.suppress(ValueError):
                cert = x509.load_pem_x509_certificate(match[0])
                entries.append(pkcs12.PKCS12Certificate(cert, b"%d" % number))
    write_atomically(target, pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(b"changeit")), 0o600)
    return target
