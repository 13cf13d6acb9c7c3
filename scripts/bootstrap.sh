# Sourced by the verbs in this folder: makes .venv on first use, with the exact versions of requirements.lock.
# Needs python3 (any 3.x with venv) and a package index as pip or uv are set up to use one; nothing by hand.
# POSIX sh, and no subprocess but one cmp when there is nothing to do: it runs before every command.

# The verb sets ROOT: the clone, found through symlinks.
VENV="${ROOT:?set by the verb}/.venv"
PYTHON="$VENV/bin/python"

# Trust what the system trusts (company roots, mirrors), as pip since 24.2 does and older ones do not.
if [ -z "${PIP_CERT:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt
    export PIP_CERT
fi
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1  # the second is the name older uv knows
export UV_NO_CONFIG=1                     # a uv.toml further up must not change what the lock says
export UV_PYTHON_DOWNLOADS=manual         # a download is the last resort, in find_python

say() { printf '%s\n' "$*" >&2; }

# The state .venv must have been made for: the clone's place, the Python, the versions, the package's metadata.
wanted_state() { printf '%s\n' "$ROOT" && cat "$ROOT/.python-version" "$ROOT/requirements.lock" "$ROOT/pyproject.toml"; }

ready() { [ -x "$PYTHON" ] && wanted_state | cmp -s - "$VENV/.bootstrapped"; }

find_uv() {
    command -v uv 2>/dev/null && return
    tools="$ROOT/.venv-tools"
    if ! "$tools/bin/uv" --version >/dev/null 2>&1; then
        say "heliproxy: installing uv into .venv-tools ..."
        python3 -m venv --clear "$tools" >&2 || {
            say "heliproxy: python3 cannot make a virtual environment (on Debian: apt-get install python3-venv), or install uv"
            return 1
        }
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5' >&2 || return 1
    fi
    printf '%s\n' "$tools/bin/uv"
}

# The newest Python of a series among pyenv's, which need not be on PATH.
pyenv_python() {
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/python; do
        [ -x "$candidate" ] && found="$candidate"
    done
    [ -n "${found:-}" ] && printf '%s\n' "$found"
}

# The series of .python-version wherever it is; else any other that the package runs on; else let uv fetch it.
find_python() {
    series=$(cat "$ROOT/.python-version")
    "$UV" python find --no-project --system "$series" 2>/dev/null && return
    pyenv_python "$series." && return
    "$UV" python find --no-project --system '>=3.12' 2>/dev/null && return
    pyenv_python 3.12. && return
    say "heliproxy: no Python >= 3.12 here, asking uv for $series ..."
    "$UV" python install "$series" >&2 && "$UV" python find --no-project "$series"
}

make_venv() {
    UV=$(find_uv) || return 1
    rm -f "$VENV/.bootstrapped"
    python=$(find_python) || { say "heliproxy: needs Python 3.12 or newer"; return 1; }
    say "heliproxy: setting up .venv ($("$python" --version 2>&1)) ..."
    if [ "$(cat "$VENV/.python" 2>/dev/null)" != "$ROOT $python" ] || ! "$PYTHON" -c '' 2>/dev/null; then
        "$UV" venv --quiet --no-project --clear --python "$python" "$VENV" >&2 || return 1
        printf '%s\n' "$ROOT $python" >"$VENV/.python"
    fi
    "$UV" pip sync --quiet --python "$PYTHON" --require-hashes "$ROOT/requirements.lock" >&2 || return 1
    "$UV" pip install --quiet --python "$PYTHON" --no-deps --no-build-isolation --editable "$ROOT" >&2 || return 1
    wanted_state >"$VENV/.bootstrapped.$$" && mv "$VENV/.bootstrapped.$$" "$VENV/.bootstrapped"
}

# Two verbs started at once in a fresh clone: the second waits, then finds the work done.
bootstrap() {
    ready && return
    if command -v flock >/dev/null 2>&1; then
        ( flock 9 && { ready || make_venv; } ) 9>"$ROOT/.bootstrap.lock"
    else
        until mkdir "$ROOT/.bootstrap.lock.d" 2>/dev/null; do sleep 1; done
        trap 'rmdir "$ROOT/.bootstrap.lock.d" 2>/dev/null' EXIT
        ( ready || make_venv )
        status=$?
        rmdir "$ROOT/.bootstrap.lock.d"
        trap - EXIT
        return $status
    fi
}

bootstrap || { say "heliproxy: set-up failed"; exit 1; }
