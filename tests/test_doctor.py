from __future__ import annotations

import json
import os
import socket
import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from fakes import Answer, Upstream
from heliproxy import certs, doctor
from heliproxy.cli import main
from heliproxy.handshakes import RUNTIMES, Shake, shake_hands
from heliproxy.hosts import CA_HOSTS
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings
from heliproxy.store import Store

NOW = datetime.now(UTC)
CLEAN = {"PATH": os.environ["PATH"]}


def levels(findings) -> list[tuple[str, str]]:
    return [(f.area, f.level) for f in findings]


@pytest.fixture
def made(home) -> Path:
    certs.ensure_ca(home, CA_HOSTS)
    return home


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_nothing_is_wrong_on_a_first_run_and_nothing_is_made(home):
    findings = list(doctor.examine(home, free_port(), free_port(), CLEAN, NOW))
    assert {f.level for f in findings} == {"ok"}
    assert not home.exists()


@pytest.mark.parametrize(
    ("days", "level", "word"),
    [(0, "ok", "nothing else"), (380, "ok", "renews"), (400, "failure", "expired"), (-9, "failure", "only from")],
)
def test_authority_is_judged_by_the_day(made, days, level, word):
    (found,) = doctor.authority(made, NOW + timedelta(days=days))
    assert (found.level, word in found.detail) == (level, True)


def test_open_key_is_a_failure_and_is_left_for_the_user_to_see(made):
    key = certs.ca_paths(made).key_and_cert
    key.chmod(0o644)
    first = next(doctor.authority(made, NOW))
    assert first.level == "failure"
    assert "chmod 600" in first.cure
    assert key.stat().st_mode & 0o777 == 0o644


def test_unreadable_authority_names_rotation(made):
    certs.ca_paths(made).key_and_cert.write_text("nonsense")
    (found,) = doctor.authority(made, NOW)
    assert (found.level, "rotate" in found.cure) == ("failure", True)


def test_bundle_from_before_a_rotation_is_stale(made):
    certs.bundle(made)
    assert levels(doctor.bundles(made)) == [("bundles", "ok")]
    certs.rotate_ca(made, CA_HOSTS)
    assert levels(doctor.bundles(made)) == [("bundles", "warning")]
    certs.bundle(made)
    assert levels(doctor.bundles(made)) == [("bundles", "ok")]


def test_database_is_checked_for_damage_locks_and_mode(home):
    path = home / "heliproxy.db"
    home.mkdir(mode=0o700)
    Store(path).writer().close()
    assert levels(doctor.database(home)) == [("database", "ok")]
    path.chmod(0o644)
    assert levels(doctor.database(home)) == [("database", "warning"), ("database", "ok")]
    path.chmod(0o600)
    path.write_bytes(b"no database at all" * 100)
    (found,) = doctor.database(home)
    assert (found.level, "not a database" in found.detail) == ("failure", True)


def test_clock_behind_the_newest_row_is_a_failure(home):
    home.mkdir(mode=0o700)
    Store(home / "heliproxy.db").writer().close()
    with sqlite3.connect(home / "heliproxy.db") as conn:
        conn.execute(
            "INSERT INTO requests (id, created_at, source) VALUES ('a', ?, 'proxy')",
            ((NOW + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%S.000Z"),),
        )
    conn.close()
    assert doctor.clock(home, NOW).level == "failure"
    assert doctor.clock(home, NOW + timedelta(days=2)).level == "ok"
    assert doctor.clock(home / "none", datetime(1970, 1, 1, tzinfo=UTC)).level == "failure"


@pytest.mark.parametrize(("text", "level"), [("2026-01-01", "warning"), ("2026-02-20", "ok"), ("x", "ok")])
def test_price_data_grows_old(home, text, level):
    home.mkdir()
    (home / "prices-date").write_text(text)
    assert doctor.price_age(home, date(2026, 3, 1)).level == level


@pytest.mark.parametrize(
    ("environ", "area"),
    [
        ({"NO_PROXY": "api.openai.com"}, "NO_PROXY"),
        ({"no_proxy": "*"}, "NO_PROXY"),
        ({"SSL_CERT_FILE": "/nowhere/x.pem"}, "trust"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9", "HELIPROXY_SAVED": '{"HTTPS_PROXY": null}'}, "session"),
    ],
)
def test_environment_traps_are_failures_with_a_cure(environ, area):
    (bad,) = [f for f in doctor.proxy_settings(environ, 9) if f.level == "failure"]
    assert (bad.area, bool(bad.cure)) == (area, True)


@pytest.mark.parametrize(
    ("proxy", "saved", "told"),
    [
        ("", "{}", True),
        ("http://company:3128", "{}", True),
        ("http://127.0.0.1:PORT/", "{}", False),
        ("http://127.0.0.1:PORT", '{"HTTPS_PROXY": null}', False),
        ("http://127.0.0.1:1", '{"HTTPS_PROXY": null}', False),  # a shell of another heliproxy's
    ],
)
def test_shell_that_does_not_go_through_the_running_proxy_is_told(proxy, saved, told):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        environ = {"HTTPS_PROXY": proxy.replace("PORT", str(port)), "HELIPROXY_SAVED": saved}
        found = [f for f in doctor.proxy_settings(environ, port) if f.area == "session"]
    assert [(f.level, f"heliproxy env --port {port}" in f.cure) for f in found] == [("skipped", True)] * told


def test_ports_tell_ours_from_another_program(home):
    with Upstream(lambda _: Answer(404)) as other, ProxyThread(Settings(home=home, port=0, api_port=0)) as ours:
        assert ours.api_port is not None
        found = list(doctor.ports(ours.port, ours.api_port))
        assert levels(found) == [("proxy port", "ok"), ("losses", "ok"), ("API port", "ok")]
        assert levels(doctor.ports(other.port, free_port())) == [("proxy port", "failure"), ("API port", "ok")]


def test_company_proxy_is_reached_or_named():
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        (found,) = doctor.company_proxy({"HTTPS_PROXY": f"http://a:secret@127.0.0.1:{port}"}, 8080)
        assert (found.level, found.detail) == ("ok", f"calls go on through http://127.0.0.1:{port}")
    (gone,) = doctor.company_proxy({"HTTPS_PROXY": f"http://127.0.0.1:{port}"}, 8080)
    assert (gone.level, "cannot be reached" in gone.detail) == ("failure", True)
    (odd,) = doctor.company_proxy({"HTTPS_PROXY": "socks5://c:1"}, 8080)
    assert (odd.level, "socks5" in odd.detail) == ("failure", True)
    assert list(doctor.company_proxy({"HTTPS_PROXY": "http://127.0.0.1:8080"}, 8080)) == []


def test_what_failed_last_and_what_waits_is_said():
    facts = {"recorder": "running", "hook_errors": 2, "last_hook_error": "ValueError: x", "unwritten": 7}
    found = doctor.losses(facts | {"away_since": "2026-09-01T10:00:00.000Z"})
    assert found.level == "failure"
    assert found.detail == (
        "nothing could be written since 2026-09-01T10:00:00.000Z, 7 rows wait in memory, 2 hook errors,"
        " the last: ValueError: x"
    )


def test_file_that_was_set_aside_is_shown(home):
    home.mkdir()
    assert list(doctor.set_aside(home)) == []
    for end in ("", "-wal"):
        (home / f"heliproxy.db.corrupt-20260921T141320{end}").touch()
    (found,) = doctor.set_aside(home)
    assert (found.level, ".recover" in found.cure) == ("warning", True)


def test_losses_are_a_failure():
    found = doctor.losses({"recorder": "running", "lost_rows": 3, "lost_bodies": 0, "errors": 1})
    assert (found.level, found.detail) == ("failure", "3 lost rows, 1 errors")


def test_runtimes_shake_hands_through_a_real_proxy(made):
    wanted = [r for r in RUNTIMES if r.name in ("python", "node", "curl")]
    shakes = shake_hands(Settings(home=made), CLEAN, wanted)
    assert {s.result for s in shakes} <= {"ok", "absent"}, shakes
    assert shakes[0].result == "ok"
    assert not (made / "heliproxy.db").exists()


def test_runtime_that_goes_past_the_proxy_or_distrusts_it_is_told_apart(made, tmp_path):
    for name, said in (("curl", "curl: (60) SSL certificate problem"), ("node", "getaddrinfo ENOTFOUND x")):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        script.chmod(0o755)
    wanted = [r for r in RUNTIMES if r.name in ("node", "curl", "go")]
    shakes = shake_hands(Settings(home=made), {"PATH": str(tmp_path)}, wanted)
    assert [(s.runtime, s.result) for s in shakes] == [("node", "bypassed"), ("curl", "untrusted"), ("go", "absent")]


def test_command_gives_json_and_its_status(home, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "api.openai.com")
    arguments = ["doctor", "--quick", "-f", "json", "--port", str(free_port()), "--api-port", str(free_port())]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_every_cure_is_below_its_finding():
    lines = list(doctor.report([doctor.Finding("disk", "failure", "full", "free some"), _ok("clock")]))
    assert lines == ["FAIL  disk         full", "                   -> free some", "ok    clock        fine"]


def _ok(area: str) -> doctor.Finding:
    return doctor.Finding(area, "ok", "fine")


def test_absent_runtime_is_skipped(monkeypatch, made):
    monkeypatch.setattr("heliproxy.handshakes.shake_hands", lambda *_: [Shake("bun", "absent")])
    assert levels(doctor.handshakes(made, CLEAN)) == [("bun", "skipped")]
