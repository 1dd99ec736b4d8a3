#!/bin/sh
# Makes the virtual environment that the Python package's tests run in: setup.sh DIR makes DIR/venv, and puts DIR/site on its path.
# Does nothing where it is there already and the requirements have not changed. About 2.5 GB to fetch, 5 GB on disk.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: setup.sh DIR" >&2; exit 2; }
mkdir -p "$1/site"
dir=$(cd "$1" && pwd)

python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "the package is for Python 3.11 or later: there is no $python" >&2; exit 3; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "the package is for Python 3.11 or later: $("$python" --version) is older" >&2; exit 3; }
"$python" -c 'import ensurepip' 2>/dev/null ||
    { echo "Python lacks venv: install it (Debian: python3-venv)" >&2; exit 3; }

exec 9>"$dir/lock"
flock -w 1800 9 || { echo "another process has been making $dir for half an hour" >&2; exit 4; }

stamp=$(cat "$here/requirements.txt" | cksum)
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
    exit 0
fi
# From the beginning: with --no-deps nothing takes away what an earlier list has left.
rm -rf "$dir/stamp" "$dir/venv"
"$python" -m venv "$dir/venv"
# Nothing is compiled to bytecode beforehand (most of it is never imported), and nothing is kept in pip's cache: it would double the space.
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-compile --no-cache-dir \
    --timeout 60 --retries 3 -r "$here/requirements.txt"
"$dir/venv/bin/python" -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "farfeed-under-test.pth").write_text(sys.argv[1] + "\n")' "$dir/site"
printf '%s\n' "$stamp" >"$dir/stamp"
