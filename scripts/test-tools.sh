#!/bin/sh
# Install what the tests need and Python does not bring: PgBouncer, Chromium and its driver, Redis,
# MariaDB, valgrind, Prometheus' promtool, from the distribution.
#
#     sh scripts/test-tools.sh [PROGRAM ...]
#
# Or other programs, each of the package of its name, but for those named below. Needs root and
# apt-get; where there is none, it says so and goes on: the tests say what they lack. Starts no service.
# A second call returns at once. Settings for proxies and package sources are left as they are.
set -eu

say() { printf 'test-tools.sh: %s\n' "$*" >&2; }

# Servers live where a plain PATH may not lead.
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export PATH DEBIAN_FRONTEND=noninteractive

missing=
[ $# -gt 0 ] || set -- pgbouncer chromium chromedriver redis-server mariadbd valgrind promtool
for tool; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    say "not installed, for there is no apt-get:$missing"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    say "not installed, for only root may:$missing (sudo make test-tools)"
    exit 0
fi

work=$(mktemp -d)
policy=${TEST_TOOLS_POLICY:-/usr/sbin/policy-rc.d}
ours=
clean() {
    [ -z "$ours" ] || rm -f "$policy"
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

# Debian starts a service as soon as it is installed, unless this says no.
if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi

packages_of() {
    case $1 in
    chromedriver)
        if apt-cache show chromium-driver >/dev/null 2>&1; then
            echo chromium-driver
        else
            echo chromium-chromedriver # Ubuntu's
        fi
        ;;
    mariadbd) echo mariadb-server-core mariadb-client-core ;;
    promtool) echo prometheus ;;
    *) echo "$1" ;;
    esac
}

# Each by itself: of one that there is not, the others are nothing the worse.
install_missing() {
    failed=
    : >"$work/log"
    for tool in $missing; do
        # shellcheck disable=SC2046  # words
        if apt-get install -y -q -o DPkg::Lock::Timeout=120 --no-install-recommends \
            $(packages_of "$tool") </dev/null >"$work/one" 2>&1; then
            installed="$installed $tool"
        else
            failed="$failed $tool"
            tail -n 20 "$work/one" >>"$work/log"
        fi
    done
    missing=$failed
}

installed=
install_missing
# The lists of packages may be missing, or of last month.
if [ -n "$missing" ]; then
    apt-get update -q </dev/null >"$work/update" 2>&1 || :
    install_missing
fi
[ -z "$installed" ] || say "installed:$installed"
if [ -n "$missing" ]; then
    cat "$work/update" "$work/log" 2>/dev/null | tail -n 40 >&2
    say "apt-get failed, for the reason above; not installed:$missing"
fi
