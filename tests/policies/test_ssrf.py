"""Guard for client-named targets (issue 3) and the targets themselves (helicone-proxy.md section 2.1)."""

from __future__ import annotations

import json

import pytest

from heliproxy.directives import Directives
from heliproxy.policies.answers import DirectiveError
from heliproxy.policies.ssrf import check_host, check_url, is_public
from heliproxy.policies.target import base_override, gateway_origin, invalid_base, origin


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com",
        "https://api.openai.com:8443/v1",
        "http://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "https://example.com.",
        "https://[::ffff:8.8.8.8]/",
    ],
)
def test_public_targets_pass(url: str) -> None:
    assert check_url(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://0/",
        "http://0.0.0.0/",
        "http://10.0.0.1/",
        "http://172.16.5.4/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.100.100.200/",
        "http://192.0.0.192/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://999999999999/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b::169.254.169.254]/",
        "http://[64:ff9b:1::1]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[fc00::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
        "http://printer.local/",
        "http://metadata/",
        "http://metadata.google.internal/",
        "http://db.internal/",
        "http://redis/",
        "http://１２７.０.０.１/",
        "http://user:pw@api.openai.com/",
        "http://api.openai.com@127.0.0.1/",
        "ftp://api.openai.com/",
        "file:///etc/passwd",
        "//api.openai.com",
        "api.openai.com",
        "https://",
        "https://a b.example/",
        "https://a.example:99999/",
        "http://[::1",
        "",
    ],
)
def test_other_targets_do_not(url: str) -> None:
    assert check_url(url) is not None


@pytest.mark.parametrize("allowed", ["127.0.0.1", "127.0.0.1:9000"])
def test_operator_can_allow_a_host(allowed: str) -> None:
    assert check_url("http://127.0.0.1:9000/v1", {allowed}) is None
    assert check_host("127.0.0.1", 9000, {allowed}) is None
    assert check_url("http://127.0.0.2:9000/v1", {allowed}) is not None
    assert check_url("http://127.0.0.1:9001/v1", {"127.0.0.1:9000"}) is not None


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("127.0.0.1", False), ("::ffff:10.0.0.1", False), ("2002:808:808::1", True), ("name", False),
     ("192.88.99.1", False), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False)],
)  # fmt: skip
def test_addresses_are_judged_again_at_connect_time(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_origin_drops_path_and_query() -> None:
    assert str(origin("https://api.groq.com/openai/v1?x=1")) == "https://api.groq.com"
    assert str(origin("http://[2606:4700::1]:8080/x")) == "http://[2606:4700::1]:8080"
    assert origin("api.groq.com") is None
    assert origin("https://a.example:x/") is None


def test_gateway_without_a_target_is_a_400() -> None:
    with pytest.raises(DirectiveError) as caught:
        gateway_origin(Directives())
    assert (caught.value.answer.status, caught.value.answer.text) == (400, "Missing target base url")


def test_gateway_with_an_unreadable_target_is_a_500() -> None:
    with pytest.raises(DirectiveError) as caught:
        gateway_origin(Directives(target_url="not a url"))
    assert caught.value.answer.status == 500
    assert "Invalid URL" in json.loads(caught.value.answer.body)["helicone-message"]


def test_private_target_is_refused_unless_allowed() -> None:
    directives = Directives(target_url="http://127.0.0.1:9000/x")
    with pytest.raises(DirectiveError) as caught:
        gateway_origin(directives)
    assert caught.value.answer.status == 500
    assert caught.value.answer.text == (
        'Invalid API base "http://127.0.0.1:9000/x": it points to 127.0.0.1, which is not a public address;'
        " `--allow-target 127.0.0.1:9000` lets requests name it"
    )
    assert str(gateway_origin(directives, {"127.0.0.1:9000"})) == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("http://intranet/v1", "`--allow-target intranet:80`"),
        ("https://LocalHost.:8443", "`--allow-target localhost:8443`"),
        ("http://user:pass@127.0.0.1/", None),
        ("ftp://127.0.0.1/", None),
        ("http://a b/", None),
    ],
)
def test_refusal_names_the_option_that_helps(url: str, option: str | None) -> None:
    text = invalid_base(url, "is refused").text
    assert (option or "is refused") in text
    assert ("--allow-target" in text) == (option is not None)


def test_api_base_wins_over_target_url() -> None:
    both = Directives(target_url="https://a.example", openai_api_base="https://me.openai.azure.com/openai")
    assert str(base_override(both)) == "https://me.openai.azure.com"
    assert str(base_override(Directives(target_url="https://a.example"))) == "https://a.example"
    assert base_override(Directives()) is None


def test_unreadable_api_base_is_a_500_text() -> None:
    with pytest.raises(DirectiveError) as caught:
        base_override(Directives(openai_api_base="nonsense"))
    assert (caught.value.answer.status, caught.value.answer.text) == (500, 'Invalid API base "nonsense"')
