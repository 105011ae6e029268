#!/usr/bin/env bash
# Simulated worlds of protocol nodes, from a seed of the day: MINUTES of small ones, and one of 16 × 16 engines of 8 ranks.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${MINUTES:-1}
seed=${SEED:-$(date +%Y%m%d)00000}
echo "seed $seed"
cargo build --release -p moai-tests --bin moai-sim
sim=${CARGO_TARGET_DIR:-target}/release/moai-sim
"$sim" --seeds 1000000 --first "$seed" --minutes "$minutes"
"$sim" --seeds 1 --first "$seed" --large 16,16,8
