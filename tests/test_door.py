"""The door knows when to ask for a token, and whom it has let in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.options import Options
from mitmproxy.test import taddons, tflow

from heliproxy.addon import Heliproxy
from heliproxy.door import Door

TOKEN = "a-secret-of-the-operator"


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Options]:
    monkeypatch.delenv("HELIPROXY_TOKEN", raising=False)
    with taddons.context() as context:
        for name, kind, default in (("heliproxy_token", str, ""), ("proxyauth", str, "")):
            context.options.add_option(name, kind, default, "")
        yield context.options


def test_loopback_asks_nobody(options: Options) -> None:
    options.update(listen_host="127.0.0.1")
    door = Door()
    door.set_up(options)
    assert door.token is None
    assert door.refuse(tflow.tflow()) is None
    assert door.admit(tflow.tflow()) is None


def test_without_a_token_nobody_gets_in(options: Options) -> None:
    options.update(listen_host="0.0.0.0")
    door = Door()
    with pytest.raises(exceptions.OptionsError, match="needs a token"):
        door.set_up(options)
    refused = door.refuse(tflow.tflow())
    assert refused is not None
    assert refused.status == 407


def test_tunnel_with_the_token_lets_its_client_in_until_it_leaves(options: Options) -> None:
    options.update(listen_host="0.0.0.0", heliproxy_token=TOKEN)
    door, flow = Door(), tflow.tflow()
    door.set_up(options)
    assert door.admit(flow) is not None
    assert door.refuse(flow) is not None
    flow.request.headers["proxy-authorization"] = f"Bearer {TOKEN}"
    assert door.admit(flow) is None
    del flow.request.headers["proxy-authorization"]
    assert door.refuse(flow) is None
    door.forget(flow.client_conn)
    assert door.refuse(flow) is not None


def test_addon_that_may_not_listen_answers_nobody(options: Options) -> None:
    addon, flow = Heliproxy(), tflow.tflow()
    options.update(listen_host="0.0.0.0")
    with pytest.raises(exceptions.OptionsError, match="needs a token"):
        addon.configure({"listen_host"})
    addon.requestheaders(flow)
    assert flow.response is not None
    assert flow.response.status_code == 407


def test_what_is_bound_counts_whatever_the_options_say(options: Options) -> None:
    async def bound_and_checked(listen_host: str, said: str, token: str) -> list[str]:
        server = Proxyserver()
        with taddons.context(server) as context:
            for name in ("heliproxy_token", "proxyauth"):
                context.options.add_option(name, str, "", "")
            context.options.update(listen_host=listen_host, listen_port=0, heliproxy_token=token)
            assert await server.setup_servers()
            context.options.update(listen_host=said)
            door = Door()
            try:
                door.set_up(context.options)
                await door.check_bound(server, context.options)
                return [str(address[0]) for address in server.listen_addrs()]
            finally:
                await server.servers.update([])

    assert asyncio.run(bound_and_checked("0.0.0.0", "127.0.0.1", "")) == ["127.0.0.1"]
    assert asyncio.run(bound_and_checked("127.0.0.1", "127.0.0.1", "")) == ["127.0.0.1"]
    assert asyncio.run(bound_and_checked("0.0.0.0", "0.0.0.0", TOKEN)) == ["0.0.0.0"]


def test_a_port_that_others_reach_needs_a_token_however_it_came_to_be(options: Options) -> None:
    async def checked() -> None:
        server = Proxyserver()
        with taddons.context(server) as context:
            context.options.add_option("proxyauth", str, "", "")
            context.options.update(listen_host="0.0.0.0", listen_port=0)
            assert await server.setup_servers()
            try:
                await Door().check_bound(server, context.options)
            finally:
                await server.servers.update([])

    with pytest.raises(exceptions.OptionsError, match=r"listening on 0\.0\.0\.0 needs a token"):
        asyncio.run(checked())
