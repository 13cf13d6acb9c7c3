"""The files around the package: what is locked, packed and promised."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {canonicalize_name(m[1]): m[2] for m in re.finditer(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK, re.MULTILINE)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["dependency-groups"]["dev"],
    *PROJECT["build-system"]["requires"],
]


@pytest.mark.parametrize("asked", ASKED)
def test_lock_fulfils_what_pyproject_asks_for(asked):
    requirement = Requirement(asked)
    locked = LOCKED.get(canonicalize_name(requirement.name))
    assert locked is not None, f"run scripts/lock: {requirement.name} is missing"
    assert requirement.specifier.contains(locked), f"run scripts/lock: {requirement.name} is locked at {locked}"


def test_every_locked_version_has_hashes_and_no_index_is_named():
    entries = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)
    assert all("--hash=sha256:" in entry for entry in entries if entry.strip())
    assert "://" not in LOCK


def test_python_of_the_clone_is_one_the_package_supports():
    assert (ROOT / ".python-version").read_text().strip() == "3.13"
    assert PROJECT["project"]["requires-python"] == ">=3.12"


@pytest.mark.parametrize("verb", ["scripts/heliproxy", "scripts/test", "scripts/check", "scripts/lock", ".ci/run"])
def test_verbs_can_be_run(verb):
    assert (ROOT / verb).stat().st_mode & 0o111
    shell = "bash" if verb == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(ROOT / verb)], check=True)


@pytest.mark.parametrize("script", ["addon/main.py", "addon/heliproxy/shims/mitmproxy/script.py"])
def test_script_for_mitmproxy_gives_it_the_addon(script):
    code = "import runpy, sys; print([type(a).__name__ for a in runpy.run_path(sys.argv[1])['addons']])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(ROOT / script)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "addon")
    assert shown.stdout == "['Heliproxy', 'FlowTools']\n", shown.stderr
