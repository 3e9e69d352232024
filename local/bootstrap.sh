#!/bin/sh
# Makes .venv, and what it needs: does nothing on a machine that is set up.
set -eu
cd "$(dirname "$0")/.."

PACKAGES="redis-server haproxy wrk maven default-jre-headless python3 python3-venv"
PROGRAMS="redis-server redis-cli haproxy wrk mvn java"

newest_python() {
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

something_is_missing() {
    [ -n "$(newest_python)" ] || return 0
    for program in $PROGRAMS; do
        command -v "$program" >/dev/null || return 0
    done
    return 1
}

install_packages() {
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=sudo
    else
        echo "Some system packages are missing: sudo apt-get update && sudo apt-get install -y $PACKAGES" >&2
        exit 1
    fi
    echo "Installing system packages: $PACKAGES"
    had_redis=$(command -v redis-server || true)
    had_haproxy=$(command -v haproxy || true)
    $as_root apt-get -qq update
    # shellcheck disable=SC2086 # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $PACKAGES >/dev/null
    # Debian starts what it installs.  Ours run under their own supervisor: those that just came are switched off.
    [ -n "$had_redis" ] || switch_off redis-server
    [ -n "$had_haproxy" ] || switch_off haproxy
}

switch_off() {
    if [ -d /run/systemd/system ]; then
        $as_root systemctl disable --quiet --now "$1" || true
    fi
}

make_environment() {
    python=$(newest_python)
    [ -n "$python" ] || { echo "Python 3.11 or newer is missing: sudo apt-get install -y python3 python3-venv" >&2; exit 1; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "Installing the locked Python packages"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
    cp requirements-dev.txt .venv/installed.txt
}

if something_is_missing; then
    install_packages
fi
if ! cmp -s requirements-dev.txt .venv/installed.txt; then
    make_environment
fi
