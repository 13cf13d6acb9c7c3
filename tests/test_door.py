"""The door knows when to ask for a token, and whom it has let in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mitmproxy import exceptions
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
