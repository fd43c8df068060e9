#!/bin/sh
# Installs Debian packages, but only those whose program is missing; says what it does.
#
#     scripts/apt-install.sh postgresql redis-server python3-venv
#
# The servers that Debian would start along the way stay off: tests and demo start private ones.
set -eu

# Succeeds when what the package is needed for is already there, wherever it came from.
have() {
    case "$1" in
    postgresql) ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ;;
    redis-server) command -v redis-server >/dev/null ;;
    rabbitmq-server) [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] ;;
    libfaketime) ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 ;;
    ruby-sidekiq) command -v sidekiq >/dev/null ;;
    libssl-dev) [ -e /usr/include/openssl/ssl.h ] || pkg-config --exists openssl 2>/dev/null ;;
    pkg-config) command -v pkg-config >/dev/null ;;
    npm) command -v node >/dev/null && command -v npm >/dev/null ;;
    nats-server) command -v nats-server >/dev/null ;;
    python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    *) echo "$0: does not know how to look for $1" >&2 && exit 2 ;;
    esac
}

missing=
for package in "$@"; do
    have "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

root=
if [ "$(id -u)" -ne 0 ]; then
    root=sudo
    if ! command -v sudo >/dev/null; then
        echo "Missing:$missing. Install them as root: apt-get install$missing" >&2
        exit 1
    fi
fi
if ! command -v apt-get >/dev/null; then
    echo "Missing:$missing. This system has no apt-get: install them in its own way." >&2
    exit 1
fi

# invoke-rc.d asks this file whether it may start a service; 101 is no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
    trap '$root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
fi

echo "Installing$missing with apt-get; their services are not started." >&2
$root apt-get -qq update
# shellcheck disable=SC2086 # a list of words
$root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing </dev/null
