from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from heliproxy import certs, environment
from heliproxy.environment import SHIMS, Trust, child_env, render, session_changes, session_undo

HOSTS = ("localhost", "api.anthropic.com", "helicone.ai", "openai.com")
NASTY = "a'b\"c\\d $HOME `id` $(id) \n\té ’“ ;|&"


@pytest.fixture
def trust() -> Trust:
    """Names instead of files: what was asked for, readable in the result."""
    return Trust(
        bundle=lambda base: Path(f"/bundle-of-{base.name if base else 'default'}"),
        extra=lambda extra: Path(f"/ours-and-{extra.name if extra else 'nothing'}"),
        php_folder=lambda bundle: Path("/php"),
        java_store=lambda bundle: Path(f"/java store{bundle}"),
    )


@pytest.fixture
def real(tmp_path: Path) -> Trust:
    certs.ensure_ca(tmp_path / "home", HOSTS)
    return environment.home_trust(tmp_path / "home")


def test_empty_environment_gets_everything(trust):
    found = child_env({}, 8123, trust, run_id="r1")
    url, bundle = "http://127.0.0.1:8123", "/bundle-of-default"
    assert found.warnings == ()
    assert found.changes == {
        "HTTP_PROXY": url,
        "HTTPS_PROXY": url,
        "http_proxy": url,
        "https_proxy": url,
        "NO_PROXY": "localhost,127.0.0.1,::1",
        "no_proxy": "localhost,127.0.0.1,::1",
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "AWS_CA_BUNDLE": bundle,
        "GIT_SSL_CAINFO": bundle,
        "CARGO_HTTP_CAINFO": bundle,
        "PIP_CERT": bundle,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": bundle,
        "HTTPLIB2_CA_CERTS": bundle,
        "NIX_SSL_CERT_FILE": bundle,
        "PERL_LWP_SSL_CA_FILE": bundle,
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": bundle,
        "CODEX_CA_CERTIFICATE": bundle,
        "NODE_EXTRA_CA_CERTS": "/ours-and-nothing",
        "DENO_CERT": "/ours-and-nothing",
        "NODE_USE_ENV_PROXY": "1",
        "NODE_OPTIONS": f'--require "{SHIMS / "node.cjs"}"',
        "PYTHONPATH": str(SHIMS / "python"),
        "PHP_INI_SCAN_DIR": ":/php",
        "HELIPROXY_RUN_ID": "r1",
        "HELIPROXY_UPSTREAM_PROXY": "",
    }


def test_each_variable_keeps_the_file_it_named(trust, tmp_path):
    corp, extra = tmp_path / "corp.pem", tmp_path / "extra.pem"
    corp.touch()
    extra.touch()
    changes = child_env({"REQUESTS_CA_BUNDLE": str(corp), "NODE_EXTRA_CA_CERTS": str(extra)}, 1, trust).changes
    assert changes["REQUESTS_CA_BUNDLE"] == "/bundle-of-corp.pem"
    assert changes["SSL_CERT_FILE"] == "/bundle-of-default"
    assert changes["NODE_EXTRA_CA_CERTS"] == "/ours-and-extra.pem"
    assert changes["DENO_CERT"] == "/ours-and-nothing"


def test_unreadable_file_is_warned_about(trust):
    found = child_env({"SSL_CERT_FILE": "/nowhere.pem"}, 1, trust)
    assert found.changes["SSL_CERT_FILE"] == "/bundle-of-default"
    assert found.warnings == (
        "SSL_CERT_FILE names /nowhere.pem, which cannot be read: the usual roots are used instead",
    )


def test_paths_and_options_of_the_user_stay(trust):
    before = {
        "PYTHONPATH": "src:lib",
        "NODE_OPTIONS": "--max-old-space-size=4096",
        "PHP_INI_SCAN_DIR": "/etc/php",
        "JAVA_TOOL_OPTIONS": '-Xmx1g -Dhttps.proxyPort=3128 -Dhttps.proxyHost="corp host" -Da=b',
    }
    changes = child_env(before, 8123, trust, java=True).changes
    assert changes["PYTHONPATH"] == f"{SHIMS / 'python'}:src:lib"
    assert changes["NODE_OPTIONS"].startswith("--max-old-space-size=4096 --require ")
    assert changes["PHP_INI_SCAN_DIR"] == "/etc/php:/php"
    assert changes["JAVA_TOOL_OPTIONS"] == (
        "-Xmx1g -Da=b -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8123"
        " -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8123"
        ' -Dhttp.nonProxyHosts=localhost|127.*|[::1] -Djavax.net.ssl.trustStore="/java store/bundle-of-default"'
        " -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=changeit"
    )


def test_applying_twice_changes_nothing_more(real, tmp_path):
    corp = tmp_path / "corp.pem"
    shutil.copy(certs.ensure_ca(tmp_path / "corp", ["corp.example"]).cert, corp)
    before = {"SSL_CERT_FILE": str(corp), "NODE_EXTRA_CA_CERTS": str(corp), "PYTHONPATH": "src", "NO_PROXY": ".corp"}
    once = child_env(before, 1, real, java=True).changes
    assert child_env(before | once, 1, real, java=True).changes == once


@pytest.mark.parametrize(
    ("environ", "value", "warned"),
    [
        ({"NO_PROXY": ".corp.example"}, ".corp.example,localhost,127.0.0.1,::1", None),
        ({"no_proxy": "a, b", "NO_PROXY": "b c"}, "a,b,c,localhost,127.0.0.1,::1", None),
        ({"NO_PROXY": "localhost"}, "localhost,127.0.0.1,::1", None),
        ({"NO_PROXY": "localhost,127.0.0.1,::1"}, "localhost,127.0.0.1,::1", None),
        ({"NO_PROXY": "fd00::1"}, "fd00::1,localhost,127.0.0.1,::1", None),
        ({"NO_PROXY": "api.openai.com"}, "api.openai.com,localhost,127.0.0.1,::1", "api.openai.com"),
        ({"NO_PROXY": "*.anthropic.com"}, "*.anthropic.com,localhost,127.0.0.1,::1", "*.anthropic.com"),
        ({"no_proxy": ".com"}, ".com,localhost,127.0.0.1,::1", ".com"),
        ({"NO_PROXY": "*"}, "*,localhost,127.0.0.1,::1", "*"),
        ({"NO_PROXY": "OPENAI.COM:443"}, "OPENAI.COM:443,localhost,127.0.0.1,::1", "OPENAI.COM:443"),
        ({"NO_PROXY": "notopenai.com"}, "notopenai.com,localhost,127.0.0.1,::1", None),
    ],
)
def test_no_proxy_is_kept_and_warned_about(trust, environ, value, warned):
    found = child_env(environ, 1, trust, hosts=HOSTS)
    assert found.changes["NO_PROXY"] == found.changes["no_proxy"] == value
    expected = (f"NO_PROXY has {warned!r}: calls there go past heliproxy and are not logged",) if warned else ()
    assert found.warnings == expected


# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "sh", "fish"])
def test_rendered_values_survive_the_shell(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    lines = render({"A_VALUE": NASTY, "GONE": None}, shell)
    script = (
        lines
        + f'{sys.executable} -c \'import os,json;print(json.dumps([os.environ["A_VALUE"],os.environ.get("GONE")]))\''
    )
    shown = subprocess.run(
        [shell, "-c", script], env={"PATH": os.environ["PATH"], "GONE": "x"}, capture_output=True, check=True
    )
    assert json.loads(shown.stdout) == [NASTY, None]


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("bash", "export A='it'\\''s'\nunset B\n"),
        ("fish", "set -gx A 'it\\'s'\nset -e B\n"),
        ("powershell", "$env:A = 'it''s'\nRemove-Item Env:B -ErrorAction SilentlyContinue\n"),
    ],
)
def test_each_shell_has_its_syntax(shell, expected):
    assert render({"A": "it's", "B": None}, shell) == expected


def test_powershell_doubles_typographic_quotes():
    assert render({"A": "‘x’"}, "powershell") == "$env:A = '‘‘x’’'\n"


def test_what_cannot_be_written_safely_is_refused():
    with pytest.raises(ValueError, match="tcsh"):
        render({}, "tcsh")
    with pytest.raises(ValueError, match="A;B"):
        render({"A;B": "x"}, "sh")


def test_session_can_be_undone_even_when_set_twice(trust):
    before = {"PATH": "/bin", "NO_PROXY": "x", "PYTHONPATH": "src"}

    def apply(environ, changes):
        merged = {**environ, **changes}
        return {k: v for k, v in merged.items() if v is not None}

    once = apply(before, session_changes(before, child_env(before, 1, trust).changes))
    again = child_env(environment.original_env(once), 2, trust).changes
    twice = apply(once, session_changes(once, again))
    assert twice["HTTPS_PROXY"] == "http://127.0.0.1:2"
    assert environment.original_env(twice) == before
    assert apply(twice, session_undo(twice)) == before


@pytest.mark.parametrize("junk", ["", "nope", "[1]", '{"A": 5}', "[" * 100_000])
def test_junk_in_the_saved_variable_is_ignored(junk):
    assert environment.original_env({"X": "1", "HELIPROXY_SAVED": junk}) == {"X": "1"}


def test_undo_without_a_session_prints_nothing():
    assert session_undo({"PATH": "/bin"}) == {}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({"SHELL": "/usr/bin/fish"}, "fish"), ({"SHELL": "/bin/zsh"}, "zsh"), ({"SHELL": "/bin/tcsh"}, "sh"), ({}, "sh")],
)
def test_shell_is_guessed(environ, expected):
    assert environment.guess_shell(environ) == expected


def test_env_command_prints_lines_on_stdout_and_talk_on_stderr(tmp_path):
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        "-m",
        "heliproxy",
        "env",
        "--port",
        "1",
        "--home",
        str(tmp_path / "home"),
        "--shell",
        "sh",
    ]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert shown.stderr == "heliproxy: nothing listens on port 1 yet: start `heliproxy serve`\n"
    assert all(line.startswith("export ") for line in shown.stdout.splitlines())
    script = f'{shown.stdout}\necho "$HTTPS_PROXY"; test -r "$SSL_CERT_FILE" && test -r "$NODE_EXTRA_CA_CERTS"'
    assert (
        subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
        == "http://127.0.0.1:1\n"
    )


# ------------------------------------------------------------------------------------------------------------------


def python_with_shim(code: str, *more_path: Path) -> str:
    path = os.pathsep.join([str(SHIMS / "python"), *map(str, more_path)])
    env = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "HTTPS_PROXY": "http://127.0.0.1:9"}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    return shown.stdout


def test_aiohttp_uses_the_environment_unless_told_otherwise():
    code = """if True:
        import asyncio, inspect, aiohttp
        async def main():
            async with aiohttp.ClientSession() as a, aiohttp.ClientSession(trust_env=False) as b:
                print(a.trust_env, b.trust_env, "trust_env" in inspect.signature(aiohttp.ClientSession).parameters)
        asyncio.run(main())"""
    assert python_with_shim(code) == "True False True\n"


def test_shim_leaves_sys_path_and_other_imports_alone():
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.path)"], env={}, capture_output=True, text=True
    )
    assert python_with_shim("import sys; print(sys.path)") == plain.stdout
    assert (
        python_with_shim("import sys; print([m for m in sys.modules if 'importlib.util' in m or m == 'asyncio'])")
        == "[]\n"
    )


def test_sitecustomize_of_the_user_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.custom = 7; sys.path.append('added')")
    assert python_with_shim("import sys; print(sys.custom, sys.path[-1])", tmp_path) == "7 added\n"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_shim_changes_nothing_without_a_proxy():
    code = "console.log(fetch.name, require('https').Agent.prototype.createConnection.name)"
    env = {"PATH": os.environ["PATH"]}
    plain = subprocess.run(["node", "-e", code], env=env, capture_output=True, text=True, check=True).stdout
    env |= {"NODE_OPTIONS": child_env({}, 1, Trust(*[lambda _: Path("/x")] * 4)).changes["NODE_OPTIONS"]}
    assert subprocess.run(["node", "-e", code], env=env, capture_output=True, text=True, check=True).stdout == plain


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no Java here")
def test_java_reads_the_trust_store(real):
    store = real.java_store(real.bundle(None))
    command = ["keytool", "-list", "-storetype", "PKCS12", "-keystore", str(store), "-storepass", "changeit"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.count("trustedCertEntry") == certs.count_certificates(real.bundle(None).read_bytes())


@pytest.mark.skipif(shutil.which("php") is None, reason="php is not installed")
def test_php_finds_the_bundle(real):
    env = {"PATH": os.environ["PATH"], **child_env({}, 1, real).changes}
    shown = subprocess.run(
        ["php", "-r", 'echo ini_get("curl.cainfo");'], env=env, capture_output=True, text=True, check=True
    )
    assert shown.stdout == env["CURL_CA_BUNDLE"]
