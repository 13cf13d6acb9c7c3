"""The empty state: how to connect, and waiting for the first request."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import page


def ways(port: int) -> list[tuple[str, str, str]]:
    """Title, explanation and lines to copy, the simplest way first."""
    return [
        (
            "Run a program through it",
            "Nothing to install or set up; ends with what it cost.",
            "heliproxy run -- python app.py",
        ),
        (
            "Send a whole terminal through it",
            "Sets the proxy and the certificate for everything started in this shell.",
            'eval "$(heliproxy env)"',
        ),
        (
            "Change one base URL",
            "For programs that ignore proxies. No certificate needed.",
            f"""client = OpenAI(base_url="http://127.0.0.1:{port}/oai/v1")
client = Anthropic(base_url="http://127.0.0.1:{port}/anthropic")""",
        ),
    ]


def welcome(pages: Pages, request: Request) -> Response:
    return page(request, "welcome.html", ways=ways(pages.proxy_port), live="welcome")
