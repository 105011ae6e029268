#!/usr/bin/env bash
# The lock-free structures under every interleaving, up to a bound on preemptions, by loom.
# Known ways to get such code wrong show with three preemptions; five take half a minute, and each more five times that.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTFLAGS="${RUSTFLAGS:-} --cfg moai_loom"
export CARGO_TARGET_DIR="${MOAI_LOOM_TARGET:-target/loom}" # other flags, other artefacts
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-5}"
timeout 600 cargo test -p moai-loom --release "$@"
