"""Webhooks tell public hosts only, at the address that was checked, and are not led elsewhere."""

from __future__ import annotations

import socket

import pytest

from fakes import Answer, Upstream
from heliproxy.webhooks import Hook, check_destination, post


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/", "http://localhost/", "http://2130706433/", "http://[::ffff:10.0.0.1]/", "http://0/",
        "http://169.254.169.254/latest/", "http://metadata.google.internal/", "http://box/", "http://router.lan/",
        "http://user:pass@example.com/", "http://127.0.0.1#@example.com/", "http://127.0.0.1\\@example.com/",
    ],
)  # fmt: skip
def test_destinations_inside_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"public|local host|URL|user name"):
        check_destination(url)


def named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    real = socket.getaddrinfo

    def fake(host: object, port: object, *args: object, **kw: object) -> object:
        if host != "hooks.example.com":
            return real(host, port, *args, **kw)  # type: ignore[arg-type]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", fake)


def test_a_name_that_leads_inside_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    with Upstream(lambda asked: Answer(body=b"inside")) as up:
        named(monkeypatch, "127.0.0.1")
        url = f"http://hooks.example.com:{up.port}/"
        check_destination(url)
        with pytest.raises(OSError, match="not a public address"):
            post(Hook("h", url, "key"), b"{}", "r")
        assert up.connections == 0
        allowed = (f"hooks.example.com:{up.port}",)
        assert post(Hook("h", url, "key"), b"{}", "r", allowed) == 200
        assert up.asked[0].header("host") == f"hooks.example.com:{up.port}"


def test_redirects_are_not_followed() -> None:
    with Upstream(lambda asked: Answer(body=b"inside")) as inside:
        away = [("location", inside.url)]
        with Upstream(lambda asked: Answer(302, headers=away)) as up:
            assert post(Hook("h", up.url, "key"), b"{}", "r", (f"127.0.0.1:{up.port}",)) == 302
        assert inside.connections == 0


def test_the_moderation_call_takes_its_key_nowhere_else() -> None:
    from heliproxy.services import post as side_call
    from heliproxy.settings import Settings, parse_upstreams

    with Upstream(lambda asked: Answer(body=b"{}")) as elsewhere:
        away = [("location", f"{elsewhere.url}/steal")]
        with Upstream(lambda asked: Answer(307 if asked.path.endswith("7") else 302, headers=away)) as up:
            settings = Settings(upstreams=parse_upstreams([f"api.openai.com={up.url}"]))
            for path in ("/v1/moderations", "/v1/7"):
                key = [("authorization", "Bearer sk-canary")]
                status, _ = side_call(settings, f"https://api.openai.com{path}", key, b"{}")
                assert status in (302, 307)
        assert elsewhere.connections == 0
