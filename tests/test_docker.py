"""The files for containers say what `heliproxy run` would set."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT
from heliproxy.environment import ADDING_VARIABLES, PROXY_VARIABLES, REPLACING_VARIABLES, Trust, child_env

FOLDER = ROOT / "scripts" / "docker"


def test_env_file_has_every_variable_that_needs_no_file_of_ours():
    trust = Trust(
        bundle=lambda _: Path("/trust/bundle.pem"),
        extra=lambda _: Path("/trust/ca.pem"),
        php_folder=lambda _: Path("/php"),
        java_store=lambda _: Path("/store"),
    )
    changes = child_env({}, 8080, trust).changes
    for name in ("NODE_OPTIONS", "PYTHONPATH", "PHP_INI_SCAN_DIR"):
        del changes[name]
    assert {*PROXY_VARIABLES, *REPLACING_VARIABLES, *ADDING_VARIABLES} < changes.keys()
    lines = (FOLDER / "heliproxy.env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines) == changes
