# Sourced by the verbs in this folder: makes .venv on first use, with the exact versions of requirements.lock.
# Needs python3 (any 3.x with venv) and a package index as pip or uv are set up to use one; nothing by hand.
# POSIX sh, and nothing but one cmp when there is nothing to do: it runs before every command. Names start with
# heliproxy_ and nothing is exported, because `heliproxy run` hands the environment on to the user's program.

# The verb sets heliproxy_root: the clone, found through symlinks.
heliproxy_venv="${heliproxy_root:?set by the verb}/.venv"
heliproxy_python="$heliproxy_venv/bin/python"

say() { printf '%s\n' "heliproxy: $*" >&2; }

# What .venv must have been made for: the clone's place, the Python, the versions, the package's metadata.
wanted_state() {
    printf '%s\n' "$heliproxy_root"
    cat "$heliproxy_root/.python-version" "$heliproxy_root/requirements.lock" "$heliproxy_root/pyproject.toml"
}

ready() { [ -x "$heliproxy_python" ] && wanted_state | cmp -s - "$heliproxy_venv/.bootstrapped"; }

# Environment for pip and uv; call it in a subshell only.
for_installers() {
    # Trust what the system trusts (company roots, mirrors), as pip since 24.2 does and older ones do not.
    if [ -z "${PIP_CERT:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
        export PIP_CERT=/etc/ssl/certs/ca-certificates.crt
    fi
    export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1  # the second is the name older uv knows
    export UV_PYTHON_DOWNLOADS=manual         # a download is the last resort, in find_python
}

find_uv() {
    command -v uv 2>/dev/null && return
    tools="$heliproxy_root/.venv-tools"
    if ! "$tools/bin/uv" --version >/dev/null 2>&1; then
        say "installing uv into .venv-tools ..."
        python3 -m venv --clear "$tools" >&2 || {
            say "python3 cannot make a virtual environment; install uv, or on Debian: apt-get install python3-venv"
            return 1
        }
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5' >&2 || return 1
    fi
    printf '%s\n' "$tools/bin/uv"
}

# The newest Python of a series among pyenv's, which need not be on PATH.
pyenv_python() {
    found=
    for candidate in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/"$1"*/bin/python; do
        [ -x "$candidate" ] && found="$candidate"
    done
    [ -n "$found" ] && printf '%s\n' "$found"
}

# The series of .python-version wherever it is; else any other that the package runs on; else let uv fetch it.
find_python() {
    series=$(cat "$heliproxy_root/.python-version")
    "$uv" python find --no-project --system "$series" 2>/dev/null && return
    pyenv_python "$series." && return
    "$uv" python find --no-project --system '>=3.12' 2>/dev/null && return
    pyenv_python 3.12. && return
    say "no Python >= 3.12 here, asking uv for $series ..."
    "$uv" python install "$series" >&2 && "$uv" python find --no-project "$series"
}

make_venv() {
    for_installers
    uv=$(find_uv) || return 1
    rm -f "$heliproxy_venv/.bootstrapped"
    python=$(find_python) || { say "needs Python 3.12 or newer"; return 1; }
    say "setting up .venv ($("$python" --version 2>&1)) ..."
    made_for="$heliproxy_root $python"
    if [ "$(cat "$heliproxy_venv/.made_for" 2>/dev/null)" != "$made_for" ] || ! "$heliproxy_python" -c '' 2>/dev/null; then
        "$uv" venv --quiet --no-project --clear --python "$python" "$heliproxy_venv" >&2 || return 1
        printf '%s\n' "$made_for" >"$heliproxy_venv/.made_for"
    fi
    set -- --quiet --python "$heliproxy_python"
    "$uv" pip sync "$@" --require-hashes "$heliproxy_root/requirements.lock" >&2 || return 1
    "$uv" pip install "$@" --no-deps --no-build-isolation --editable "$heliproxy_root" >&2 || return 1
    # Compile what every run imports now, so that the first run is as fast as the next.
    "$heliproxy_python" -W ignore -c 'import heliproxy.serve' 2>/dev/null
    wanted_state >"$heliproxy_venv/.bootstrapped.new" && mv "$heliproxy_venv/.bootstrapped.new" "$heliproxy_venv/.bootstrapped"
}

# Two verbs started at once in a fresh clone: the second waits, then finds the work done.
bootstrap() {
    ready && return
    if command -v flock >/dev/null 2>&1; then
        ( flock 9 && { ready || make_venv; } ) 9>"$heliproxy_root/.bootstrap.lock"
        return
    fi
    (
        until mkdir "$heliproxy_root/.bootstrap.lock.d" 2>/dev/null; do sleep 1; done
        trap 'rmdir "$heliproxy_root/.bootstrap.lock.d"' EXIT
        ready || make_venv
    )
}

bootstrap || { say "set-up failed"; exit 1; }
