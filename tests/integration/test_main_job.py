"""The main job on real parts: the vendors' SDKs, our proxy, a fake provider, a SQLite file."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path
from typing import Any

import anthropic
import brotli
import httpx
import openai
import pytest

from fakes import (
    Answer,
    Asked,
    Upstream,
    chat_answer,
    chat_chunks,
    json_answer,
    message_answer,
    message_events,
    sse_answer,
)
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import HOSTS, Running, running

USAGE = {
    "prompt_tokens": 2000,
    "completion_tokens": 300,
    "total_tokens": 2300,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
}
# gpt-4o-mini: $0.15 / $0.075 cached / $0.60 per million tokens
USAGE_COST = ((2000 - 1024) * 0.15 + 1024 * 0.075 + 300 * 0.60) / 1e6


def openai_or_anthropic(asked: Asked) -> Answer:
    body = asked.json
    if asked.path.startswith("/v1/messages"):
        cache = {"cache_creation_input_tokens": 1000, "cache_read_input_tokens": 2000}
        if body.get("stream"):
            return sse_answer(message_events(["Hel", "lo"], **cache))
        return json_answer(message_answer(**cache))
    if body.get("stream"):
        wants = (body.get("stream_options") or {}).get("include_usage")
        return sse_answer(chat_chunks(["Hel", "lo"], usage=USAGE if wants else None))
    return json_answer(chat_answer(**USAGE))


def ask(client: openai.OpenAI, **kw: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], **kw)


def test_plain_openai_call_is_answered_logged_and_priced(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        answer = ask(run.openai())
        assert answer.choices[0].message.content == "Hello!"
        row = run.row()
    assert (row["provider"], row["host"], row["path"]) == ("openai", "api.openai.com", "/v1/chat/completions")
    assert (row["model"], row["request_model"], row["status"]) == ("gpt-4o-mini-2024-07-18", "gpt-4o-mini", 200)
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (2000, 1024, 300)
    assert (row["reasoning_tokens"], row["usage_source"], row["stream"]) == (64, "provider", 0)
    assert row["cost_usd"] == pytest.approx(USAGE_COST, rel=1e-9)
    assert row["key_fingerprint"]
    assert "canary" not in json.dumps(row)
    assert row["finish_reason"] == "stop"
    assert row["latency_ms"] > 0


def test_streamed_openai_call_has_usage_and_time_to_first_token(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        chunks = list(ask(run.openai(), stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
        row = run.row()
    assert (row["input_tokens"], row["output_tokens"], row["stream"], row["status"]) == (2000, 300, 1, 200)
    assert row["cost_usd"] == pytest.approx(USAGE_COST, rel=1e-9)
    assert 0 < row["ttft_ms"] <= row["latency_ms"]


def test_anthropic_calls_count_cache_reads_and_writes(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        client = run.anthropic()
        ask = {"model": "claude-opus-4-8", "max_tokens": 99, "messages": [{"role": "user", "content": "Hi"}]}
        assert client.messages.create(**ask).content[0].text == "Hello!"
        with client.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == "Hello"
        rows = run.wait_rows(2)
    # claude-opus-4-8: $5 / $6.25 write / $0.50 read / $25 per million tokens; what Claude Code itself prints
    cost = 0.0076
    for row, stream in zip(rows, (0, 1), strict=True):
        assert (row["provider"], row["stream"], row["status"]) == ("anthropic", stream, 200)
        assert (row["input_tokens"], row["cache_read_tokens"], row["cache_write_tokens"]) == (3025, 2000, 1000)
        assert row["output_tokens"] == 9
        assert row["cost_usd"] == pytest.approx(cost, rel=1e-9)


def test_helicone_hosts_are_rewritten_and_helicone_headers_stay_here(home: Path) -> None:
    headers = {
        "Helicone-Auth": "Bearer sk-helicone-aaaaaa1-bbbbbbb-ccccccc-ddddddd",
        "Helicone-User-Id": "ada",
        "Helicone-Session-Id": "s-1",
        "Helicone-Session-Path": "/a/b",
        "Helicone-Session-Name": "Trip",
        "Helicone-Property-App": "tests",
        "Helicone-Request-Id": "0e1c1f9e-3a59-4a3a-9d7e-8f0f3a1b2c3d",
    }
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        client = run.openai(base_url="https://oai.helicone.ai/v1", default_headers=headers)
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}]
        )
        claude = run.anthropic(base_url="https://anthropic.helicone.ai", default_headers={"Helicone-User-Id": "alan"})
        claude.messages.create(model="claude-opus-4-8", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        row, other = run.wait_rows(2)
        (prop,) = run.rows("SELECT * FROM properties WHERE key = 'app'")
        dump = "\n".join(map(str, run.rows("SELECT * FROM bodies")))
    assert raw.headers["Helicone-Id"] == row["id"] == "0e1c1f9e-3a59-4a3a-9d7e-8f0f3a1b2c3d"
    assert raw.headers["Helicone-Status"] == "success"
    assert (row["host"], row["user_id"], row["session_id"]) == ("api.openai.com", "ada", "s-1")
    assert (row["session_path"], row["session_name"], prop["value"]) == ("/a/b", "Trip", "tests")
    assert (other["host"], other["user_id"]) == ("api.anthropic.com", "alan")
    assert not [n for a in up.asked for n, _ in a.headers if n.lower().startswith("helicone")]
    assert up.asked[0].header("authorization") == "Bearer sk-test-canary"
    assert "canary" not in dump
    assert "sk-helicone-aaaaaa1" not in dump


def test_base_url_style_needs_no_ca_and_no_proxy_variable(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        plain = run.direct()
        for base in (f"{run.url}/oai/v1", f"{run.url}/v1/gateway/oai/v1", f"{run.url}/v1"):
            client = openai.OpenAI(api_key="sk-x", base_url=base, http_client=plain, max_retries=0)
            assert ask(client).choices[0].message.content == "Hello!"
        direct = anthropic.DefaultHttpxClient(trust_env=False)
        claude = anthropic.Anthropic(api_key="k", base_url=f"{run.url}/anthropic", http_client=direct, max_retries=0)
        claude.messages.create(model="claude-opus-4-8", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        direct.close()
        rows = run.wait_rows(4)
    assert [row["host"] for row in rows] == ["api.openai.com"] * 3 + ["api.anthropic.com"]
    assert {row["path"] for row in rows} == {"/v1/chat/completions", "/v1/messages"}


def test_first_chunk_reaches_the_client_before_the_third_leaves_upstream(home: Path) -> None:
    gate = threading.Event()
    events = chat_chunks([f"w{i} " for i in range(18)])

    def handler(asked: Asked) -> Answer:
        return sse_answer([*events[:2], gate, *events[2:]])

    with Upstream(handler) as up, running(home, up) as run:
        stream = ask(run.openai(), stream=True)
        first = next(iter(stream))
        assert first.choices[0].delta.role == "assistant"
        gate.set()
        assert len(list(stream)) == 19
        assert run.row()["status"] == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate"])
def test_compressed_streams_pass_unchanged_and_are_read(home: Path, encoding: str) -> None:
    plain = b"".join(chat_chunks(["Hel", "lo"], usage=USAGE))
    pieces = compress(plain, encoding)
    gate = threading.Event()

    def handler(asked: Asked) -> Answer:
        return sse_answer([pieces[0], gate, *pieces[1:]], content_encoding=encoding)

    with Upstream(handler) as up, running(home, up) as run:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        url = "https://api.openai.com/v1/chat/completions"
        with run.client() as client, client.stream("POST", url, json=body) as response:
            raw = response.iter_raw()
            got = next(raw)
            gate.set()
            got += b"".join(raw)
        assert got == b"".join(pieces)
        row = run.row()
    assert (row["input_tokens"], row["output_tokens"], row["status"]) == (2000, 300, 200)


def compress(data: bytes, encoding: str) -> list[bytes]:
    middle = len(data) // 2
    if encoding == "br":
        brotli_stream = brotli.Compressor()
        first = brotli_stream.process(data[:middle]) + brotli_stream.flush()
        return [first, brotli_stream.process(data[middle:]) + brotli_stream.finish()]
    if encoding == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        stream = zstd.ZstdCompressor()
        first = stream.compress(data[:middle], zstd.ZstdCompressor.FLUSH_BLOCK)
        return [first, stream.compress(data[middle:], zstd.ZstdCompressor.FLUSH_FRAME)]
    deflate = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    first = deflate.compress(data[:middle]) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return [first, deflate.compress(data[middle:]) + deflate.flush()]


def connect(run: Running, host: str = "api.openai.com") -> ssl.SSLSocket:
    """A TLS connection to `host` through the proxy, by hand, so that the test decides when it ends."""
    sock = socket.create_connection(("127.0.0.1", run.proxy.port), timeout=10)
    sock.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
    assert b" 200 " in sock.recv(4096)
    return run.context.wrap_socket(sock, server_hostname=host)


def post(sock: ssl.SSLSocket, body: dict[str, Any], path: str = "/v1/chat/completions") -> None:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Authorization: Bearer sk-x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)


def read_until(sock: ssl.SSLSocket, marker: bytes) -> bytes:
    got = b""
    while marker not in got:
        data = sock.recv(65536)
        assert data, f"closed before {marker!r}: {got!r}"
        got += data
    return got


CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_client_that_hangs_up_after_done_gives_one_correct_row(home: Path) -> None:
    gate = threading.Event()
    with (
        Upstream(lambda asked: sse_answer([*chat_chunks(["Hi"], usage=USAGE), gate])) as up,
        running(home, up) as run,
    ):
        sock = connect(run)
        post(sock, CHAT)
        read_until(sock, b"data: [DONE]")
        sock.close()
        row = run.row()
        gate.set()
        assert len(run.rows()) == 1
    assert (row["status"], row["error"], row["input_tokens"], row["output_tokens"]) == (200, None, 2000, 300)
    assert row["cost_usd"] == pytest.approx(USAGE_COST, rel=1e-9)


def test_row_is_written_when_the_last_event_has_passed_even_if_nobody_closes(home: Path) -> None:
    gate = threading.Event()
    with (
        Upstream(lambda asked: sse_answer([*chat_chunks(["Hi"], usage=USAGE), gate])) as up,
        running(home, up) as run,
    ):
        sock = connect(run)
        post(sock, CHAT)
        read_until(sock, b"data: [DONE]")
        row = run.row()
        gate.set()
        sock.close()
    assert (row["status"], row["output_tokens"]) == (200, 300)


def test_client_that_hangs_up_in_the_middle_gives_one_cancelled_row(home: Path) -> None:
    gate = threading.Event()
    events = chat_chunks(["one ", "two ", "three "])
    with Upstream(lambda asked: sse_answer([*events[:3], gate, *events[3:]])) as up, running(home, up) as run:
        sock = connect(run)
        post(sock, CHAT)
        read_until(sock, b"two")
        sock.close()
        row = run.row()
        gate.set()
        assert len(run.rows()) == 1
    assert (row["status"], row["usage_source"], row["lower_bound"]) == (-3, "estimated", 1)
    assert row["output_tokens"] > 0
    assert row["cost_usd"] > 0


def test_upstream_that_cuts_a_stream_is_an_error_for_client_and_row(home: Path) -> None:
    events = chat_chunks(["one ", "two "])
    with Upstream(lambda asked: sse_answer([*events[:2], "cut"])) as up, running(home, up) as run:
        body = json.dumps(CHAT).encode()
        with run.client() as client, pytest.raises(httpx.RemoteProtocolError):
            client.post("https://api.openai.com/v1/chat/completions", content=body)
        row = run.row()
    assert row["error"]
    assert row["error_type"] == "upstream_failed"


def test_upstream_that_cannot_be_reached_is_a_502_row(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up:
        url = up.url
    upstreams = parse_upstreams([f"api.openai.com={url}"])
    with ProxyThread(Settings(home=home, port=0, api_port=None, upstreams=upstreams)) as proxy:
        run = Running(proxy, home)
        with pytest.raises(openai.InternalServerError):
            ask(run.openai())
        row = run.row()
        run.close()
    assert (row["status"], row["error_type"]) == (502, "upstream_failed")
    assert row["cost_usd"] is None


def test_provider_error_is_logged_with_its_type_and_not_priced(home: Path) -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "code": None}}
    with Upstream(lambda asked: json_answer(error, 429, retry_after="1")) as up, running(home, up) as run:
        with pytest.raises(openai.RateLimitError):
            ask(run.openai())
        row = run.row()
    assert (row["status"], row["error_type"], row["error"]) == (429, "rate_limit_error", "slow down")
    assert (row["cost_usd"], row["input_tokens"], row["usage_source"]) == (None, None, "none")


def test_error_inside_a_200_stream_is_an_error(home: Path) -> None:
    events = message_events(["Hi"])
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    with Upstream(lambda asked: sse_answer([*events[:3], error])) as up, running(home, up) as run:
        body = {"model": "claude-opus-4-8", "max_tokens": 9, "messages": [], "stream": True}
        with run.client() as client:
            assert client.post("https://api.anthropic.com/v1/messages", json=body).status_code == 200
        row = run.row()
    assert (row["status"], row["error_type"]) == (529, "overloaded_error")


def test_other_calls_on_the_same_hosts_never_become_rows(home: Path) -> None:
    with Upstream(lambda asked: json_answer({"data": []})) as up, running(home, up) as run, run.client() as client:
        assert client.get("https://api.openai.com/v1/models").json() == {"data": []}
        body = {"model": "claude-opus-4-8", "messages": []}
        assert client.post("https://api.anthropic.com/v1/messages/count_tokens", json=body).status_code == 200
        assert client.post("https://api.anthropic.com/api/event_logging/v2/batch", json={}).status_code == 200
        assert run.rows() == []
    assert [a.path for a in up.asked] == ["/v1/models", "/v1/messages/count_tokens", "/api/event_logging/v2/batch"]


def test_usage_less_stream_is_estimated_and_says_so(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        list(ask(run.openai(), stream=True))
        row = run.row()
    # 3 a message + role + "Hi" + 3 (accuracy.md section 4); "Hello" is one token
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("estimated", 8, 1)


def test_omitted_bodies_are_replaced_by_their_model(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run:
        for headers in ({"Helicone-Omit-Request": "true"}, {"Helicone-Omit-Response": "true"}):
            ask(run.openai(), extra_headers=headers)
        ask(run.openai(), extra_headers={"Helicone-Omit-Request": "true", "Helicone-Omit-Response": "true"})
        assert [row["input_tokens"] for row in run.wait_rows(3)] == [2000] * 3
        first, second = run.rows("SELECT * FROM bodies ORDER BY rowid")
    assert json.loads(first["request"]) == {"model": "gpt-4o-mini"}
    assert json.loads(second["response"]) == {"model": "gpt-4o-mini-2024-07-18"}


def test_request_and_response_bytes_are_untouched(home: Path) -> None:
    body = b'{ "model":"gpt-4o-mini",\n\t"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}] }'
    answer = gzip.compress(json.dumps(chat_answer(**USAGE), indent=3).encode())
    headers = [("content-type", "application/json"), ("content-encoding", "gzip"), ("X-Odd-CASE", "1")]
    with Upstream(lambda asked: Answer(200, answer, headers)) as up, running(home, up) as run, run.client() as client:
        with client.stream("POST", "https://api.openai.com/v1/chat/completions", content=body) as response:
            assert b"".join(response.iter_raw()) == answer
            assert response.headers["x-odd-case"] == "1"
        assert up.asked[0].body == body
        assert run.row()["input_tokens"] == 2000


def test_http2_clients_are_served(home: Path) -> None:
    with Upstream(openai_or_anthropic) as up, running(home, up) as run, run.client(http2=True) as client:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
        for url in ("https://oai.helicone.ai/v1/chat/completions", "https://api.openai.com/v1/chat/completions"):
            response = client.post(url, json=body, headers={"Helicone-User-Id": "h2"})
            assert response.status_code == 200
        rows = run.wait_rows(2)
    assert [row["user_id"] for row in rows] == ["h2", "h2"]
    assert [row["host"] for row in rows] == ["api.openai.com"] * 2


def test_other_tls_traffic_keeps_its_own_certificate(home: Path, tmp_path: Path) -> None:
    cert = self_signed(tmp_path, "localhost")
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(cert)
    with Upstream(openai_or_anthropic) as up, running(home, up, allowed_targets=("localhost",)) as run:
        listener = socket.create_server(("127.0.0.1", 0))
        served = threading.Thread(target=serve_once, args=(listener, ctx), daemon=True)
        served.start()
        port = listener.getsockname()[1]
        tunnel = http.client.HTTPSConnection(
            "127.0.0.1", run.proxy.port, context=ssl.create_default_context(cafile=str(cert)), timeout=10
        )
        tunnel.set_tunnel("localhost", port)
        tunnel.request("GET", "/")
        assert tunnel.getresponse().read() == b"genuine"
        tunnel.close()
        served.join(5)
        listener.close()
        assert run.rows() == []


def self_signed(folder: Path, name: str) -> Path:
    path = folder / "server.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(path), "-out", str(folder / "cert.pem"), "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}", "-days", "2"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + (folder / "cert.pem").read_bytes())
    return path


def serve_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    sock, _ = listener.accept()
    with context.wrap_socket(sock, server_side=True) as tls:
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ngenuine")


SEED = textwrap.dedent(
    """
    import asyncio, os
    from openai import OpenAI, AsyncOpenAI
    from anthropic import Anthropic, AsyncAnthropic

    hi = [{"role": "user", "content": "Hi"}]
    auth = {"Helicone-Auth": f"Bearer {os.environ['HELICONE_API_KEY']}"}
    for client in (OpenAI(), OpenAI(base_url="https://oai.helicone.ai/v1", default_headers=auth)):
        print(client.chat.completions.create(model="gpt-4o-mini", messages=hi).choices[0].message.content)
        for chunk in client.chat.completions.create(
            model="gpt-4o-mini", messages=hi, stream=True, stream_options={"include_usage": True}
        ):
            pass
    for client in (Anthropic(), Anthropic(base_url="https://anthropic.helicone.ai", default_headers=auth)):
        print(client.messages.create(model="claude-opus-4-8", max_tokens=9, messages=hi).content[0].text)
        with client.messages.stream(model="claude-opus-4-8", max_tokens=9, messages=hi) as stream:
            stream.get_final_message()

    async def main():
        answer = await AsyncOpenAI().chat.completions.create(model="gpt-4o-mini", messages=hi)
        print(answer.choices[0].message.content)
        message = await AsyncAnthropic().messages.create(model="claude-opus-4-8", max_tokens=9, messages=hi)
        print(message.content[0].text)

    asyncio.run(main())
    """
)


def test_snippets_of_helicones_documentation_run_unchanged_under_run(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(SEED)
    with Upstream(openai_or_anthropic) as up:
        redirect = [part for host in HOSTS for part in ("--upstream", f"{host}={up.url}")]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "heliproxy",
                "run",
                "--home",
                str(home),
                *redirect,
                "--",
                sys.executable,
                str(script),
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "addon"),
                "OPENAI_API_KEY": "sk-test",
                "ANTHROPIC_API_KEY": "sk-ant-test",
                "HELICONE_API_KEY": "sk-helicone-aaaaaa1-bbbbbbb-ccccccc-ddddddd",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello!\n" * 6
    assert "10 requests" in done.stderr
    conn = sqlite3.connect(home / "heliproxy.db")
    rows = conn.execute("SELECT provider, count(*), count(cost_usd) FROM requests GROUP BY 1 ORDER BY 1").fetchall()
    conn.close()
    assert rows == [("anthropic", 5, 5), ("openai", 5, 5)]


def test_results_of_a_batch_are_calls_at_half_the_price(home: Path) -> None:
    lines = [
        {"custom_id": "one", "result": {"type": "succeeded", "message": message_answer(service_tier="batch")}},
        {"custom_id": "two", "result": {"type": "errored", "error": {"type": "error", "error": {"type": "api_error"}}}},
        {"custom_id": "three", "result": {"type": "expired"}},
    ]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    headers = [("content-type", "application/x-jsonl")]
    url = "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results"
    with Upstream(lambda asked: Answer(200, body, headers)) as up, running(home, up) as run, run.client() as client:
        for _ in range(2):
            assert client.get(url).content == body
        first, second = sorted(run.wait_rows(2), key=lambda row: row["status"])
        assert len(run.rows()) == 2
    assert (first["input_tokens"], first["output_tokens"], first["status"]) == (25, 9, 200)
    # claude-opus-4-8 in batches: $2.50 / $12.50 per million tokens
    assert first["cost_usd"] == pytest.approx((25 * 2.5 + 9 * 12.5) / 1e6, rel=1e-9)
    assert (second["status"], second["cost_usd"]) == (500, None)
