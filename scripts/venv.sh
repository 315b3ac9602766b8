#!/bin/sh
# Make a virtual environment and install into it, with whatever Python this machine has.
#
#     sh scripts/venv.sh DIR [WHAT PIP INSTALLS ...]
#
# Takes $PYTHON, or else the first interpreter that runs and is new enough. A second call with
# nothing changed returns at once; an environment that is half made, moved, broken or of another
# Python than $PYTHON is made anew. Of two calls at once one waits. Settings for proxies and package
# indexes are left as they are.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."
dir=${1%/}
shift
case $dir in /*) place=$dir ;; *) place=$(pwd -P)/$dir ;; esac
inside=$dir/bin/python
nl='
'

# What would send packages elsewhere, import them from elsewhere, or keep an interpreter waiting.
unset PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONINSPECT PYTHONPLATLIBDIR PYTHONEXECUTABLE \
    PYTHONOPTIMIZE PYTHONWARNINGS \
    PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_NO_DEPS PIP_NO_BUILD_ISOLATION \
    PIP_REQUIRE_VIRTUALENV
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Python reads the path of an environment in the encoding of the locale: these two know ASCII alone.
case ${LC_ALL-} in C | POSIX) export LC_ALL=C.UTF-8 ;; esac

say() { printf 'venv.sh: %s\n' "$*" >&2; }

# A name on PATH may be a shim that only says the version is not installed: run it and see.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

identity() { "$1" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null; }

works() { new_enough "$inside" && "$inside" -m pip --version >/dev/null 2>&1; }

# An environment holds absolute paths, and pyvenv.cfg says where it was made.
moved() {
    case "$(cat "$dir/pyvenv.cfg" 2>/dev/null)$nl" in *" $place$nl"*) return 1 ;; esac
}

if [ -n "${PYTHON-}" ] && ! new_enough "$PYTHON"; then
    say "PYTHON=$PYTHON does not run, or is older than 3.11: passed over"
    PYTHON=
fi

# Whoever changes the environment says so in a file beside it, with the number of his process.
busy=$dir.busy
interrupted=
begun=
begin() {
    [ -z "$begun" ] || return 0
    if [ -e "$dir" ] && ! [ -w "$dir" ]; then
        say "$dir is another user's: clone poolkit anew, or name another: VENV=/path/to/one make ..."
        exit 1
    fi
    [ -z "$interrupted" ] || rm -f "$busy"
    mkdir -p "$(dirname "$dir")" 2>/dev/null || :
    if ! (set -C && echo $$ >"$busy") 2>/dev/null; then
        [ ! -e "$busy" ] || exec sh scripts/venv.sh "$dir" "$@"  # another was faster
        say "$busy cannot be written: clone poolkit where you may write, or: VENV=/path/to/one make ..."
        exit 1
    fi
    begun=yes
}
finish() {
    [ -z "$begun" ] || rm -f "$busy"
    exit "$1"
}

# Its number may be another process's by now, as in a container that was started anew.
is_at_work() {
    [ "$1" != $$ ] && kill -0 "$1" 2>/dev/null || return 1
    args=$({ tr '\0' ' ' <"/proc/$1/cmdline" || ps -p "$1" -o args=; } 2>/dev/null) || return 0
    case $args in *venv.sh*) ;; *) return 1 ;; esac
}

# Of one that was interrupted, pip would take for installed what is half unpacked.
waits=
while [ -e "$busy" ]; do
    other=$(cat "$busy" 2>/dev/null) || :
    if is_at_work "$other"; then
        [ -n "$waits" ] || say "waits for process $other, which works on $dir (or remove $busy)"
        waits=yes
        sleep 1
        continue
    fi
    sleep 1 # it may be about to write its number
    [ "$(cat "$busy" 2>/dev/null)" = "$other" ] || continue
    interrupted=yes
    break
done

if [ -n "$interrupted" ] || moved || ! works ||
    { [ -n "${PYTHON-}" ] && [ "$(identity "$PYTHON")" != "$(identity "$inside")" ]; }; then
    python=
    for candidate in "${PYTHON-}" python3.14 python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && new_enough "$candidate"; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        say "no Python 3.11 or newer runs here: install one, or name one: PYTHON=/path/to/python make ..."
        exit 1
    fi
    case $place in *:* | *"$nl"*)
        say "Python makes no environment in a path with a colon or a line break: move the clone"
        exit 1
        ;;
    esac
    begin "$@"
    [ ! -e "$dir" ] || say "making $dir anew: it is half made, moved, broken or of another Python"
    rm -rf "$dir"
    if ! "$python" -m venv "$dir" >/dev/null 2>&1 || ! works; then
        # Debian ships Python without ensurepip: borrow the pip of any interpreter that has one.
        rm -rf "$dir"
        "$python" -m venv --without-pip "$dir"
        said=
        for candidate in "$python" python3 python python3.14 python3.13 python3.12 python3.11; do
            "$candidate" -m pip --python "$inside" --version >/dev/null 2>&1 || continue
            said=$("$candidate" -m pip --python "$inside" install -q pip 2>&1) && break
        done
        if ! works; then
            rm -rf "$dir"
            if [ -n "$said" ]; then
                printf '%s\n' "$said" | tail -n 20 >&2
                say "pip could not be installed into $dir, for the reason above"
            else
                say "$python has no ensurepip and no pip is at hand: install python3-venv or python3-pip"
            fi
            finish 1
        fi
    fi
fi

[ $# -gt 0 ] || finish 0

# The stamp: the sum of what decided the installation, then what was asked for, a word a line.
# It is gone while pip works: what was there before may be half replaced.
stamp=$dir/installed
sum=$({
    cat pyproject.toml
    "$inside" -V
    for word; do case $word in *.txt) cat "$word" ;; esac done  # constraints
} | cksum)
have=$(cat "$stamp" 2>/dev/null || :)$nl
case $have in "$sum$nl"*) ;; *) have=$sum$nl ;; esac
missing=
for word; do
    case $have in *"$nl$word$nl"*) ;; *) missing=yes ;; esac
done
[ -n "$missing" ] || finish 0
begin "$@"
packages() { ls "$dir"/lib*/python*/site-packages 2>/dev/null | cksum; }
before=$(packages)
say "installing into $dir ($("$inside" -V)): $*"
rm -f "$stamp"
# Kept here, and not in a file: the disk may be full.
if ! said=$("$inside" -m pip install -q "$@" 2>&1); then
    printf '%s\n' "$said" | tail -n 20 >&2
    say "pip failed, for the reason above"
    [ "$before" = "$(packages)" ] || exit 1 # the next call makes it anew
    finish 1
fi
{ printf '%s' "$have" && printf '%s\n' "$@"; } >"$stamp"
finish 0
