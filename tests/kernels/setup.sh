#!/bin/sh
# Makes the virtual environment that kernels are compiled in: setup.sh DIR makes DIR/venv. 23 MB to fetch, 85 MB on disk.
# Does nothing where it is there already and the requirements have not changed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: setup.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)

python=${PYTHON:-python3}
"$python" -c 'import ensurepip' 2>/dev/null || { echo "Python with venv is missing (Debian: python3-venv)" >&2; exit 3; }

stamp=$(cksum <"$here/requirements.txt")
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
    exit 0
fi
rm -rf "$dir/stamp" "$dir/venv"
"$python" -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-compile --no-cache-dir \
    --timeout 60 --retries 3 -r "$here/requirements.txt"
printf '%s\n' "$stamp" >"$dir/stamp"
