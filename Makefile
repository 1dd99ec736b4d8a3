# What a contributor and the continuous integration run. Needs cargo and a C compiler; `make setup` looks for the rest: nginx, Python.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# An example that takes longer than this, in seconds, hangs.
EXAMPLE_TIMEOUT := 180
SOAK_SECONDS ?= 120
EXAMPLES := $(sort $(patsubst examples/%.rs,%,$(wildcard examples/*.rs)))

.PHONY: help
help:
	@echo "make test     everything that must pass before a commit"
	@echo "make bench    benchmarks: each checks its answer and prints its ceiling beside it; half an hour"
	@echo "make results  those against other clients, with enough rounds to publish; an hour and a half"
	@echo "make soak     minutes of random faults ($(SOAK_SECONDS) s; SOAK_SECONDS=600 for more): right bytes, flat memory"
	@echo "make gpu      binaries to carry to a machine with a GPU, in $(GPU): no toolchain is needed there"
	@echo "make gpu-page the page in docs/results of what came back: make gpu-page JSON=FILE"
	@echo "make candle   a training loop in candle, near, far and interrupted; its build takes minutes"
	@echo "make demo     a GPU (or host memory) fed across an emulated link, in one picture"
	@echo
	@echo "make wheel    a portable wheel of the Python package, in $(WHEELS)"
	@echo
	@echo "steps of make test: setup format lint unit docs examples kernels python"

# One after the other, in this order, whatever -j says: they share cargo's lock anyway.
.PHONY: test
test:
	@for step in setup format lint unit docs examples kernels python; do $(MAKE) --no-print-directory $$step; done
	@echo "== all passed"

.PHONY: setup
setup:
	@echo "== setup: what the other steps need"
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.89 or newer (https://rustup.rs)"; exit 1; }
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	@command -v cc >/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	        || { echo "a C compiler is missing: apt-get install build-essential"; exit 1; }; \
	    apt-get update -qq && apt-get install -y -qq build-essential; }
	@PATH="$$PATH:/usr/sbin"; command -v nginx >/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	        || { echo "nginx is missing, which the tests of https read from: apt-get install nginx"; exit 1; }; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx; }
	@python3 -c 'import ensurepip' 2>/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	        || { echo "Python 3.11 with venv is missing: apt-get install python3-venv"; exit 1; }; \
	    apt-get update -qq && apt-get install -y -qq python3 python3-venv; }
	@command -v node >/dev/null && command -v npm >/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	        || { echo "node 18 or later with npm is missing: apt-get install nodejs npm"; exit 1; }; \
	    apt-get update -qq && apt-get install -y -qq nodejs npm; }
	@sh tests/python/setup.sh $${CARGO_TARGET_DIR:-target}/tmp/real
	@sh tests/azurite/setup.sh $${CARGO_TARGET_DIR:-target}/tmp/azurite

.PHONY: format
format:
	@echo "== format"
	@cargo fmt --all --check
	@cargo fmt --manifest-path examples/candle/Cargo.toml --check

.PHONY: lint
lint:
	@echo "== lint"
	@cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings

.PHONY: unit
unit:
	@echo "== tests"
	@cargo test --workspace --all-features --lib --bins --tests
	@echo "== tests in documentation"
	@cargo test --workspace --all-features --doc

# The command shares its name with the library, so only libraries are documented.
.PHONY: docs
docs:
	@echo "== documentation"
	@RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --all-features --no-deps --lib

.PHONY: examples
examples:
	@cargo build --quiet --all-features --examples
	@for example in $(EXAMPLES); do \
	    echo "== example $$example"; \
	    timeout $(EXAMPLE_TIMEOUT) cargo run --quiet --all-features --example $$example \
	        || { echo "example $$example failed (exit status $$?; 124: longer than $(EXAMPLE_TIMEOUT) s)"; exit 1; }; \
	done

# NVRTC compiles without a GPU: what is committed must be what the source gives.
KERNELS_HOME := $(or $(CARGO_TARGET_DIR),target)/tmp/kernels
.PHONY: kernels
kernels:
	@echo "== kernels"
	@sh tests/kernels/setup.sh $(KERNELS_HOME)
	@for source in $$(find src examples tests -name '*.cu'); do $(KERNELS_HOME)/venv/bin/python tests/kernels/compile.py $$source || exit 1; done
# A workspace of its own: see its Cargo.toml. Not part of `make test`: candle takes four minutes to build on two cores.
.PHONY: candle
candle:
	@echo "== training in candle"
	@CARGO_TARGET_DIR=$(TARGET)/candle cargo clippy --quiet --locked --manifest-path examples/candle/Cargo.toml -- -D warnings
	@CARGO_TARGET_DIR=$(TARGET)/candle timeout 1800 cargo run --quiet --locked --manifest-path examples/candle/Cargo.toml

# The extension that cargo's tests have built, beside the package's sources, in an environment of its own: nothing is installed elsewhere.
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON_HOME := $(TARGET)/tmp/python
.PHONY: python
python:
	@echo "== Python package"
	@sh ffi/python/tests/setup.sh $(PYTHON_HOME)
	@cargo build --quiet --workspace --all-features
	@sh ffi/python/tests/place.sh $(TARGET)/debug/lib_farfeed.so $(PYTHON_HOME)
	@$(PYTHON_HOME)/venv/bin/python -W "ignore:farfeed was built" -m pytest -q -p no:cacheprovider --durations=5 ffi/python/tests

# By zig's linker against an old glibc: it installs on any Linux of the last decade, for every Python from 3.11 on.
WHEELS := $(or $(CARGO_TARGET_DIR),target)/wheels
MATURIN := 1.16.0
ZIG := 0.15.2
.PHONY: wheel
wheel:
	@[ -x $(TARGET)/tmp/wheel/bin/maturin ] || python3 -m venv $(TARGET)/tmp/wheel
	@$(TARGET)/tmp/wheel/bin/python -m pip install --quiet --disable-pip-version-check maturin==$(MATURIN) ziglang==$(ZIG)
	@PATH="$(abspath $(TARGET)/tmp/wheel/bin):$$PATH" $(TARGET)/tmp/wheel/bin/maturin build --release --locked --zig \
	    --compatibility manylinux_2_17 --manifest-path ffi/python/Cargo.toml --out $(WHEELS)
	@ls -l $(WHEELS)/*.whl

.PHONY: bench
bench:
	@cargo bench --workspace --all-features

# The command, the benchmark of the device, and the tests that can use the machine's driver: built here and run elsewhere, see docs/gpu.md. They need
# the glibc that is told, and a driver. One call of cargo: their dependencies have the same features then, and are built once.
GPU := $(or $(CARGO_TARGET_DIR),target)/gpu
GPU_TESTS := cuda_double cuda_teardown cuda_consumers finishing
.PHONY: gpu
gpu:
	@rm -rf $(GPU)/tests && mkdir -p $(GPU)/tests
	@cargo build --release --locked --all-features --bin farfeed --bench device $(addprefix --test ,$(GPU_TESTS)) \
	    --message-format=json-render-diagnostics > $(GPU)/built
	@for name in farfeed device $(GPU_TESTS); do \
	    built=$$(grep -o "\"executable\":\"[^\"]*/$$name\(-[0-9a-f]*\)\?\"" $(GPU)/built | cut -d '"' -f 4) || true; \
	    [ -x "$$built" ] || { echo "cargo did not say where it put $$name"; exit 1; }; \
	    case $$name in farfeed|device) to=$(GPU)/$$name;; *) to=$(GPU)/tests/$$name;; esac; \
	    cp "$$built" $$to; strip $$to; \
	done
	@rm $(GPU)/built
	@cp benches/device/run.sh $(GPU)/run.sh
	@ls -l $(GPU) $(GPU)/tests
	@echo "needs $$(cat $(GPU)/farfeed $(GPU)/device $(GPU)/tests/* | grep -a -o 'GLIBC_2\.[0-9]*' | sort -u -V | tail -1) or newer, $$(uname -m)"
	@echo "there: sh run.sh    (some five minutes; writes results-TIME.json beside it, and exits with 0 where there is no GPU)"
	@echo "here:  make gpu-page JSON=results-TIME.json"

.PHONY: gpu-page
gpu-page:
	@[ -f "$(JSON)" ] || { echo "make gpu-page JSON=FILE: the file that run.sh wrote"; exit 1; }
	@cp "$(JSON)" $(RESULTS)-gpu.json
	@cargo bench --quiet --all-features --bench device -- --report $(RESULTS)-gpu.json --to $(RESULTS)-gpu.md
	@echo "$(RESULTS)-gpu.md and .json: look at them, and commit them"

.PHONY: soak
soak:
	@FARFEED_SOAK_SECONDS=$(SOAK_SECONDS) cargo test --all-features --test soak -- --ignored --nocapture

# Tables, figures and pictures of the day, to be looked at and committed.
RESULTS := docs/results/$(shell date -u +%F)
.PHONY: results
results:
	@cargo bench --all-features --bench receive -- --json $(RESULTS)-receive.json --svg $(RESULTS)-receive.svg | tee $(RESULTS)-receive.txt
	@cargo bench --all-features --bench link -- --grid --rounds 3 --json $(RESULTS)-grid.json --svg $(RESULTS)-grid.svg | tee $(RESULTS)-grid.txt
	@cargo bench --all-features --bench link -- --tail --seconds 10 --rounds 3 --json $(RESULTS)-tail.json | tee $(RESULTS)-tail.txt

.PHONY: demo
demo:
	@cargo run --quiet --release --package farfeed-cli -- demo
