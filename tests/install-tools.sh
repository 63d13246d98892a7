#!/bin/sh
# install-tools.sh TOOL:PACKAGE…   Installs the Debian or Ubuntu packages of the tools that are
# missing, and what $PYTHON needs to make a virtual environment.
set -eu

missing=
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
"$PYTHON" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -n "$missing" ] || exit 0

if grep -q '^ID=ubuntu' /etc/os-release; then
    missing=$(echo "$missing" | sed 's/linux-perf/linux-tools-generic/')
fi
as_root=
[ "$(id -u)" = 0 ] || as_root='sudo -n'
if ! command -v apt-get >/dev/null || ! $as_root true 2>/dev/null; then
    echo "Please install, as root:$missing" >&2
    exit 1
fi
echo "Installing:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq -y --no-install-recommends $missing >/dev/null
