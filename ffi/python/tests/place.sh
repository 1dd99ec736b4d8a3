#!/bin/sh
# Puts the package together as it would be installed, without installing it: place.sh LIB DIR copies the sources and the extension LIB to
# DIR/site/farfeed, which setup.sh has put on the path of DIR/venv.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 2 ] || { echo "usage: place.sh LIB DIR" >&2; exit 2; }
[ -f "$1" ] || { echo "there is no $1: build it with cargo build --workspace --all-features" >&2; exit 3; }
rm -rf "$2/site/farfeed"
mkdir -p "$2/site/farfeed"
for file in "$here"/../python/farfeed/*.py "$here"/../python/farfeed/*.pyi "$here"/../python/farfeed/py.typed; do
    cp "$file" "$2/site/farfeed/"
done
cp "$1" "$2/site/farfeed/_farfeed.abi3.so"
