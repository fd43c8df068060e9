#!/bin/sh
# Makes the virtual environment with Django and Celery, that the example and its tests run in, and Dramatiq, that tests run.
#
#     scripts/python-env.sh [directory]      default: target/python
#
# Does nothing when it is there and was made from the same requirements.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
env=${1:-${CARGO_TARGET_DIR:-$here/target}/python}
wanted() {
    cat "$here/examples/django/requirements.txt" "$here/tests/workers/requirements.txt"
}

mkdir -p "$(dirname "$env")"
exec 9>"$env.lock" # one at a time
flock 9
wanted | cmp -s - "$env/requirements.txt" && exit 0

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    echo "python3 has no venv: scripts/apt-install.sh python3-venv" >&2
    exit 1
fi
echo "Installing Django, Celery and Dramatiq into $env." >&2
rm -rf "$env"
python3 -m venv "$env"
"$env/bin/pip" install --quiet --disable-pip-version-check \
    --requirement "$here/examples/django/requirements.txt" --requirement "$here/tests/workers/requirements.txt" </dev/null
wanted >"$env/requirements.txt" # last: it says that the rest is complete
