from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from conftest import ROOT
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings


def run(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "addon")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_serving_loads_only_the_addons_it_uses():
    code = "import sys, heliproxy.serve; print([m for m in ('flask', 'ldap3', 'mitmproxy.addons') if m in sys.modules])"
    assert run(code) == "[]\n"


def test_package_imported_later_is_the_real_one_with_the_same_modules():
    code = (
        "import heliproxy.serve; from mitmproxy import addons; from mitmproxy.addons import core;"
        "print(len(addons.default_addons()) > 25, addons.core is core is heliproxy.serve.core)"
    )
    assert run(code) == "True True\n"


def test_package_imported_before_is_left_alone():
    code = "from mitmproxy import addons; import heliproxy.serve, sys; print(sys.modules['mitmproxy.addons'] is addons)"
    assert run(code) == "True\n"


def test_option_of_an_addon_left_out_brings_all_of_them(home):
    settings = Settings(home=home, port=0, api_port=None, mitm_options=("stickyauth=.*",))
    with ProxyThread(settings) as proxy:
        assert proxy.proxy is not None
        assert proxy.proxy.master is not None
        assert proxy.proxy.master.addons.get("stickyauth") is not None


def test_dashboard_port_is_open_at_once_and_served_when_asked(home):
    code = (
        "import sys, urllib.request; from pathlib import Path; from heliproxy.serve import ProxyThread\n"
        "from heliproxy.settings import Settings\n"
        "with ProxyThread(Settings(home=Path(sys.argv[1]), port=0, api_port=0)) as proxy:\n"
        "    print('uvicorn' in sys.modules)\n"
        "    print(urllib.request.urlopen(f'http://127.0.0.1:{proxy.api_port}/health').status)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(home)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "addon", env={"no_proxy": "*"})
    assert shown.stdout == "False\n200\n", shown.stderr


def test_dashboard_port_that_nobody_asked_is_closed(home):
    with ProxyThread(Settings(home=home, port=0, api_port=0)) as proxy:
        port = proxy.api_port
        assert port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
