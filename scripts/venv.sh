#!/bin/sh
# Make a virtual environment and install into it, with whatever Python this machine has.
#
#     sh scripts/venv.sh DIR [WHAT PIP INSTALLS ...]
#
# Takes the first interpreter that runs and is new enough (or $PYTHON). A second call with nothing
# changed returns at once; an environment that is half made, moved or broken is made anew. Settings
# for proxies and package indexes are left as they are.
set -eu
cd "$(dirname "$0")/.."
dir=$1
shift

# What would send packages elsewhere, or import them from elsewhere.
unset PYTHONPATH PYTHONHOME PYTHONUSERBASE PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'venv.sh: %s\n' "$*" >&2; }

# A name on PATH may be a shim that only says the version is not installed: run it and see.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

python=
for candidate in "${PYTHON-}" python3.13 python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] && new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    say "no Python 3.11 or newer runs here: install one, or name one: PYTHON=/path/to/python make ..."
    exit 1
fi

inside="$dir/bin/python"
works() { new_enough "$inside" && "$inside" -m pip --version >/dev/null 2>&1; }
# What an environment is good for: it holds absolute paths, so it must not have been moved.
here=$(pwd -P)

if ! works || [ "$(cat "$dir/made-at" 2>/dev/null)" != "$here" ]; then
    rm -rf "$dir"
    if ! "$python" -m venv "$dir" >/dev/null 2>&1 || ! works; then
        # Debian ships Python without ensurepip: borrow the pip of any interpreter that has one.
        rm -rf "$dir"
        "$python" -m venv --without-pip "$dir"
        for candidate in "$python" python3 python python3.13 python3.12 python3.11; do
            "$candidate" -m pip --python "$inside" install -q pip >/dev/null 2>&1 && break
        done
        if ! works; then
            say "$python has no ensurepip and no pip is at hand: install python3-venv or python3-pip"
            exit 1
        fi
    fi
    printf '%s' "$here" >"$dir/made-at"
fi

[ $# -gt 0 ] || exit 0
wanted=$({ cat pyproject.toml && printf '%s\n' "$@" && "$inside" -V; } | cksum | tr -d ' ')
stamp="$dir/installed-$wanted"
[ -e "$stamp" ] && exit 0
say "installing into $dir ($("$inside" -V)): $*"
if ! "$inside" -m pip install -q "$@" >"$dir/pip.log" 2>&1; then
    tail -n 20 "$dir/pip.log" >&2
    say "pip failed; all it said is in $dir/pip.log"
    exit 1
fi
: >"$stamp"
