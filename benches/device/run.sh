#!/bin/sh
# What to run on the machine with the GPU: carried there by `make gpu`, beside `farfeed` and `device`. Needs neither toolchain nor network.
# CUDA_VISIBLE_DEVICES chooses the GPU; memory of its NUMA node is nearer: numactl --cpunodebind N --membind N sh run.sh
set -eu
cd "$(dirname "$0")"
day=$(date -u +%F)
./farfeed doctor --gpu > "doctor-$day.txt"
cat "doctor-$day.txt"
status=0
./device "$@" --json "results-$day.json" > "results-$day.txt" || status=$?
cat "results-$day.txt"
exit $status
