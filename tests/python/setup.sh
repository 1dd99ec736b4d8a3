#!/bin/sh
# Makes the real input of the tests: setup.sh DIR writes DIR/data, with a virtual environment in DIR/venv.
# Does nothing where both are there already and neither the requirements nor the maker have changed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: setup.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)

python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "the real input is made by Python 3.11 or later: there is no $python" >&2; exit 3; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "the real input is made by Python 3.11 or later: $("$python" --version) is older" >&2; exit 3; }
"$python" -c 'import ensurepip' 2>/dev/null ||
    { echo "Python lacks venv: install it (Debian: python3-venv)" >&2; exit 3; }
tar --version 2>/dev/null | grep -q 'GNU tar' || { echo "one of the shards is written by GNU tar: there is none" >&2; exit 3; }

# Tests run side by side: one makes, the others wait.
exec 9>"$dir/lock"
flock -w 540 9 || { echo "another process has been making $dir for nine minutes" >&2; exit 4; }

stamp=$(cat "$here/requirements.txt" "$here/make_real.py" | cksum)
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
    exit 0
fi
rm -rf "$dir/stamp" "$dir/data" "$dir/data.part"
[ -x "$dir/venv/bin/python" ] || "$python" -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --timeout 30 --retries 3 -r "$here/requirements.txt"
"$dir/venv/bin/python" "$here/make_real.py" "$dir/data.part"
mv "$dir/data.part" "$dir/data"
printf '%s\n' "$stamp" >"$dir/stamp"
