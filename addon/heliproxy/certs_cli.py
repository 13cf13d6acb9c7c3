"""`heliproxy certs`: look at this installation's certificate authority, hand out its certificate, replace it."""

from __future__ import annotations

from pathlib import Path

import click

from heliproxy.options import home_option

FORMS = ("pem", "der", "p12", "bundle")


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
@click.option("--password", help="Password of a p12 trust store. [default: none]")
@home_option
def export_command(form: str, output: Path | None, password: str | None, home: Path) -> None:
    """Write the certificate, never the key, in the form that another program wants."""
    from heliproxy.certs import bundle, ca_paths, export

    _made(home)
    if form == "bundle":
        data = bundle(home).read_bytes()
    else:
        data = export(ca_paths(home), form, password.encode() if password else None)
    if output is None:
        click.echo(data, nl=False)
        return
    try:
        output.write_bytes(data)
    except OSError as e:
        raise click.ClickException(str(e)) from e


@certs_command.command("rotate")
@home_option
def rotate_command(home: Path) -> None:
    """Replace key and certificate. Running proxies keep the old ones until they are restarted."""
    from heliproxy.certs import rotate_ca
    from heliproxy.hosts import CA_HOSTS

    try:
        click.echo(rotate_ca(home, CA_HOSTS).cert)
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
