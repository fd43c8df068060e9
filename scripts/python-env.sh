#!/bin/sh
# Makes a virtual environment of Python. By default the one that the example and its tests run in, with Django and Celery, and
# with Dramatiq, whose workers the tests run.
#
#     scripts/python-env.sh [directory [requirements ...]]      default: target/python
#
# Does nothing when it is there and was made from the same requirements.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
env=${1:-${CARGO_TARGET_DIR:-$here/target}/python}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- "$here/examples/django/requirements.txt" "$here/tests/workers/requirements.txt"

mkdir -p "$(dirname "$env")"
exec 9>"$env.lock" # one at a time
flock 9
cat "$@" | cmp -s - "$env/requirements.txt" && exit 0

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    echo "python3 has no venv: scripts/apt-install.sh python3-venv" >&2
    exit 1
fi
echo "Installing $(cat "$@" | grep -v '^ *\(#\|$\)' | paste -sd ' ') into $env." >&2
rm -rf "$env"
python3 -m venv "$env"
for file in "$@"; do
    "$env/bin/pip" install --quiet --disable-pip-version-check --requirement "$file" </dev/null
done
cat "$@" >"$env/requirements.txt" # last: it says that the rest is complete
