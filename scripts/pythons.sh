#!/bin/sh
# Name the interpreters that poolkit supports and this machine has: one a line, the oldest first.
#
#     sh scripts/pythons.sh
#     3.11 /usr/bin/python3.11
#     3.14 /home/me/.pyenv/versions/3.14.2/bin/python3.14
#
# Or only those of the versions in $POOLKIT_TEST_PYTHONS, as "3.12 3.13".
#
# Looks at the versioned names and `python3` on PATH, and into the folders in which pyenv and uv keep
# theirs. Of one version the first that runs is taken. Passed over: shims that only say a version is
# not installed, pre-releases, builds without the GIL, and what is not CPython.
set -eu

pyenv=${PYENV_ROOT:-${HOME:-/nowhere}/.pyenv}/versions
uv=${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-/nowhere}/.local/share}/uv/python}

# The version, if it is one of ours, and where the interpreter itself lies, behind its shims.
look='
import sys, sysconfig
is_ours = sys.implementation.name == "cpython" and sys.version_info.releaselevel == "final"
if is_ours and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print("{0}.{1}".format(*sys.version_info), sys.executable)
'

for version in ${POOLKIT_TEST_PYTHONS:-3.11 3.12 3.13 3.14}; do
    for candidate in "python$version" python3 python \
        "$pyenv/$version".*"/bin/python$version" \
        "$uv/cpython-$version".*"/bin/python$version"; do
        found=$("$candidate" -I -c "$look" 2>/dev/null) || continue
        case $found in
        "$version "*)
            printf '%s\n' "$found"
            break
            ;;
        esac
    done
done
