#!/bin/sh
# Installs Azurite, the Azure emulator of the tests: setup.sh DIR fills DIR/node_modules with what package-lock.json names.
# Does nothing where that is there already and the lock has not changed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: setup.sh DIR" >&2; exit 2; }
for tool in node npm; do
    command -v "$tool" >/dev/null || { echo "the Azure tests run Azurite, which needs node 18 or later and npm: there is no $tool" >&2; exit 3; }
done
node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' ||
    { echo "Azurite needs node 18 or later: this is $(node --version)" >&2; exit 3; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)

# Tests run side by side: one installs, the others wait.
exec 9>"$dir/lock"
flock -w 540 9 || { echo "another process has been installing into $dir for nine minutes" >&2; exit 4; }

stamp=$(cat "$here/package.json" "$here/package-lock.json" | cksum)
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
    exit 0
fi
rm -rf "$dir/stamp" "$dir/node_modules"
cp "$here/package.json" "$here/package-lock.json" "$dir/"
(cd "$dir" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error)
printf '%s\n' "$stamp" >"$dir/stamp"
