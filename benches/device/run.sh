#!/bin/sh
# What to run on the machine with the GPU. `make gpu` puts it beside `farfeed`, `device` and `tests`; it needs neither toolchain nor network.
#
#   sh run.sh [options of device]        everything: doctor, figures, tests with the machine's driver
#   RESULTS=FOLDER sh run.sh             results there, not beside this script
#   LIMIT=SECONDS sh run.sh              `device` is ended then; what it had found by then is kept
#
# CUDA_VISIBLE_DEVICES chooses the GPU; memory of its NUMA node is nearer: numactl --cpunodebind N --membind N sh run.sh
# Exit status: 0 where all is well, or there is no GPU, which is said; 1 where something failed, was wrong or took too long. The rest is done all
# the same, and all results are kept.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
results=${RESULTS:-$here}
mkdir -p "$results" || exit 1
stamp=$(date -u +%Y-%m-%d-%H%M%S)
status=0

# Where a container's driver may be without the loader's knowing.
for place in /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/wsl/lib; do
    if [ -e "$place/libcuda.so.1" ]; then
        LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$place
        export LD_LIBRARY_PATH
    fi
done

limited() {
    seconds=$1
    shift
    if command -v timeout >/dev/null 2>&1; then timeout -k 10 "$seconds" "$@"; else "$@"; fi
}

failed() {
    echo "run.sh: $1"
    status=1
}

if command -v nvidia-smi >/dev/null 2>&1; then
    limited 30 nvidia-smi -q > "$results/smi-$stamp.txt" 2>&1 || failed "nvidia-smi did not end well"
fi
limited 300 "$here/farfeed" doctor --gpu "$results" > "$results/doctor-$stamp.txt" 2>&1 || failed "doctor did not end well"
cat "$results/doctor-$stamp.txt"

echo
echo "device: 2 to 3 minutes, and the tests; it says in $results/progress-$stamp.txt how far it is"
limited "${LIMIT:-1500}" "$here/device" "$@" --json "$results/results-$stamp.json" \
    > "$results/results-$stamp.txt" 2> "$results/progress-$stamp.txt" || failed "device did not end well"
# Ended before it could say: what it had kept by then.
if [ ! -s "$results/results-$stamp.txt" ] && [ -s "$results/results-$stamp.json" ]; then
    "$here/device" --report "$results/results-$stamp.json" > "$results/results-$stamp.txt"
fi
cat "$results/results-$stamp.txt"
[ "$status" = 0 ] || cat "$results/progress-$stamp.txt"
exit $status
