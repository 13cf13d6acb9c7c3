"""`heliproxy certs`: look at this installation's certificate authority, hand out its certificate, replace it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from heliproxy.home import make_private_file
from heliproxy.options import home_option

FORMS = ("pem", "der", "p12", "jks", "bundle")


root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("/"),
    show_default=True,
    help="Root of the system meant, for example an image being built.",
)


@click.group("certs")
def certs_command() -> None:
    """Show, export and renew the certificate authority of this installation."""


@certs_command.command("show")
@home_option
def show_command(home: Path) -> None:
    """Show who the authority is, until when it is valid, and for which hosts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from heliproxy.certs import permitted_hosts

    cert = x509.load_pem_x509_certificate(_made(home).read_bytes())
    click.echo(f"subject      {cert.subject.rfc4514_string()}")
    click.echo(f"valid until  {cert.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"SHA-256      {cert.fingerprint(hashes.SHA256()).hex(':')}")
    click.echo(f"hosts        {', '.join(permitted_hosts(cert)) or 'any'}")


@certs_command.command("path")
@click.option("--form", type=click.Choice(("pem", "bundle")), default="pem", show_default=True, help="Which file.")
@home_option
def path_command(form: str, home: Path) -> None:
    """Print the path of the certificate, or of a bundle of the usual roots and it.

    \b
    curl --cacert "$(heliproxy certs path)" -x http://127.0.0.1:8080 https://api.openai.com/v1/models
    """
    from heliproxy.certs import bundle

    made = _made(home)
    click.echo(made if form == "pem" else bundle(home))


@certs_command.command("export")
@click.option("--form", type=click.Choice(FORMS), default="pem", show_default=True, help="File format.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="File to write. [default: stdout]"
)
@click.option("--password", help="Password of a trust store. [default: none; jks: changeit]")
@home_option
def export_command(form: str, output: Path | None, password: str | None, home: Path) -> None:
    """Write the certificate, never the key, in the form that another program wants."""
    from heliproxy.certs import bundle, ca_paths, export

    cert = _made(home)
    if form == "bundle":
        data = bundle(home).read_bytes()
    elif form == "jks":
        data = java_key_store(cert, password or "changeit")
    else:
        data = export(ca_paths(home), form, password.encode() if password else None)
    if output is None:
        click.echo(data, nl=False)
        return
    try:
        if form in ("p12", "jks"):
            # They hold no key, but programs take them for files that do, and may refuse one that others can read.
            make_private_file(output)
        output.write_bytes(data)
    except OSError as e:
        raise click.ClickException(str(e)) from e


@certs_command.command("rotate")
@home_option
def rotate_command(home: Path) -> None:
    """Replace key and certificate. Running proxies keep the old ones until they are restarted."""
    from heliproxy.certs import rotate_ca
    from heliproxy.hosts import CA_HOSTS
    from heliproxy.system_trust import installed

    try:
        before = installed(_made(home))
        click.echo(rotate_ca(home, CA_HOSTS).cert)
    except OSError as e:
        raise click.ClickException(str(e)) from e
    if before:
        click.echo("heliproxy: the system trusts the old one: heliproxy certs install --system", err=True)


@certs_command.command("install")
@click.option("--system", is_flag=True, required=True, help="Yes, change the whole system's trust store.")
@root_option
@home_option
def install_command(system: bool, root: Path, home: Path) -> None:  # noqa: ARG001 - being given is all it is for
    """Make the whole system trust the certificate. `run` and `env` do not need it; `uninstall` takes it back.

    \b
    sudo heliproxy certs install --system --home "$(dirname "$(dirname "$(heliproxy certs path)")")"
    """
    from heliproxy.system_trust import install

    cert = _made(home)
    _change(lambda: install(cert, root), "install --system", home)


@certs_command.command("uninstall")
@root_option
@home_option
def uninstall_command(root: Path, home: Path) -> None:
    """Take the certificate out of the system's trust store again."""
    from heliproxy.certs import ca_paths
    from heliproxy.system_trust import uninstall

    _change(lambda: uninstall(ca_paths(home).cert, root), "uninstall", home)


@certs_command.command("verify")
@root_option
@home_option
def verify_command(root: Path, home: Path) -> None:
    """Check authority and bundles, and let every runtime on this machine shake hands with a proxy; exit 0 or 1."""
    import os
    import sys
    from datetime import UTC, datetime

    from heliproxy import doctor
    from heliproxy.system_trust import installed

    cert = _made(home)
    findings = [*doctor.authority(home, datetime.now(UTC)), *doctor.bundles(home), *doctor.handshakes(home, os.environ)]
    findings.append(doctor.Finding("system", "ok", f"{'trusts' if installed(cert, root) else 'does not know'} it"))
    for line in doctor.report(findings):
        click.echo(line)
    sys.exit(1 if any(f.level == "failure" for f in findings) else 0)


def java_key_store(cert: Path, password: str) -> bytes:
    """The certificate as a Java key store of the old kind, made by `keytool`; p12 needs no such program."""
    import shutil
    import subprocess
    import tempfile

    keytool = shutil.which("keytool")
    if keytool is None:
        raise click.ClickException("jks needs Java's keytool; Java 8 and newer read --form p12 as well")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "heliproxy.jks"
        command = [keytool, "-importcert", "-noprompt", "-alias", "heliproxy", "-file", str(cert)]
        command += ["-storetype", "JKS", "-keystore", str(store), "-storepass", password]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0 or not store.exists():
            raise click.ClickException(f"keytool: {(done.stdout + done.stderr).strip()[:300]}")
        return store.read_bytes()


def _change(change: Callable[[], str], words: str, home: Path) -> None:
    try:
        click.echo(change())
    except PermissionError as e:
        raise click.ClickException(f"{e}; try: sudo heliproxy certs {words} --home '{home}'") from e
    except OSError as e:
        raise click.ClickException(str(e)) from e


def _made(home: Path) -> Path:
    """The certificate, made now if this is the first use."""
    from heliproxy.certs import ensure_ca
    from heliproxy.hosts import CA_HOSTS

    try:
        return ensure_ca(home, CA_HOSTS).cert
    except OSError as e:
        raise click.ClickException(str(e)) from e
