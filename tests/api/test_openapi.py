"""The OpenAPI document is true: schemathesis makes requests from it and compares the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_rig import Rig, open_rig
from heliproxy.api.app import ENDPOINTS
from heliproxy.api.openapi import document
from heliproxy.bodies import Body
from heliproxy.pricing import Prices

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402
from schemathesis.specs.openapi import checks as conformance  # noqa: E402

HOST = "127.0.0.1:8585"
EXAMPLES = 8
"""Requests an operation; all of them together are about a thousand."""
CHECKS = [
    checks.not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, prices: Prices) -> Iterator[Rig]:
    rig = open_rig(tmp_path_factory.mktemp("openapi") / "home", prices)
    for i in range(20):
        rig.add(
            f"{i}",
            created_at=f"2026-09-{i + 1:02}T12:00:00.000Z",
            model="gpt-4o",
            user_id=f"u{i % 3}",
            session_id=f"s{i % 4}",
            session_name="N",
            input_tokens=10,
            output_tokens=5,
            cost_usd=0.1,
            latency_ms=5.0,
            properties={"env": "prod"},
            body=Body(b"{}", b"{}", "application/json", "application/json"),
        )
    rig.post("/v1/request/1/score", {"scores": {"q": 0.5}}, 201)
    yield rig
    rig.client.close()
    rig.app.state.api.database.close()
    rig.recorder.close()


@pytest.fixture(scope="module")
def schema(filled: Rig) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", filled.app, headers={"host": HOST})


OPERATIONS = [(path, method) for path, methods in document(ENDPOINTS)["paths"].items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.filterwarnings("ignore")
def test_every_operation_keeps_to_its_description(schema: Any, path: str, method: str) -> None:
    # schemathesis' own pytest plugin reaches into pytest's internals and falls behind them; this needs none.
    @given(case=schema[path][method].as_strategy())
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, headers={"host": HOST})

    check()


def test_every_operation_is_described_once() -> None:
    found = document(ENDPOINTS)
    operations = [(path, method) for path, methods in found["paths"].items() for method in methods]
    ids = [found["paths"][path][method]["operationId"] for path, method in operations]
    assert len(ids) == len(set(ids)) > 80
    assert json.loads(json.dumps(found)) == found


def test_operations_of_helicones_description_are_served_or_refused_by_name(filled: Rig, shared: Path) -> None:
    text = (shared / "reference" / "helicone-openapi-condensed.txt").read_text()
    operations = [line.split()[1:3] for line in text.splitlines() if line.startswith("### ")]
    assert len(operations) > 200
    for method, path in operations:
        concrete = path.replace("{", "").replace("}", "")
        body = None if method in ("GET", "DELETE") else {}
        answer = filled.client.request(method, concrete, json=body)
        assert answer.status_code != 405, (method, path)
        assert "there is no" not in answer.text or "here" not in answer.text, (method, path)
