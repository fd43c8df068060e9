#!/bin/sh
# Makes the virtual environment with Django and Celery that the example and its tests run in, or another one.
#
#     scripts/python-env.sh [directory [requirements]]      default: target/python, for the example
#
# Does nothing when it is there and was made from the same requirements.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
env=${1:-${CARGO_TARGET_DIR:-$here/target}/python}
wanted=${2:-$here/examples/django/requirements.txt}

mkdir -p "$(dirname "$env")"
exec 9>"$env.lock" # one at a time
flock 9
cmp -s "$wanted" "$env/requirements.txt" && exit 0

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    echo "python3 has no venv: scripts/apt-install.sh python3-venv" >&2
    exit 1
fi
echo "Installing $(paste -sd " " "$wanted") into $env." >&2
rm -rf "$env"
python3 -m venv "$env"
"$env/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" </dev/null
cp "$wanted" "$env/requirements.txt" # last: it says that the rest is complete
