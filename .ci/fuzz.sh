#!/usr/bin/env bash
# Builds each fuzz target and runs it for some seconds: bash .ci/fuzz.sh [SECONDS] [TARGET ...]
# What is found lies under target/fuzz/found; a longer search goes on from the corpus of the last one.
# Needs a C++ compiler. Sanitizers are unstable flags: RUSTC_BOOTSTRAP lets the stable compiler take them.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-30}
shift || true
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || targets=(layout tensor descriptor frames protocol handle directory identities)

tools=$PWD/target/tools
export PATH="$PATH:$tools/bin" RUSTC_BOOTSTRAP=1
if ! command -v cargo-fuzz >/dev/null; then
    cargo install cargo-fuzz --locked --root "$tools"
fi

out=$PWD/target/fuzz
mkdir -p "$out/seeds/descriptor"
# Descriptions of real caches, and all the pairs of which they are.
for case in tests/data/kv/*/; do
    { cat "$case/producer.json"; printf '\0'; cat "$case/consumer.json"; } >"$out/seeds/descriptor/$(basename "$case")"
done

for target in "${targets[@]}"; do
    mkdir -p "$out/corpus/$target" "$out/found"
    seeds=tests/fuzz/seeds/$target
    [[ -d $seeds ]] || seeds=$out/seeds/$target
    dictionary=()
    [[ ! -f tests/fuzz/$target.dict ]] || dictionary=("-dict=tests/fuzz/$target.dict")
    echo "== $target, $seconds s"
    cargo fuzz run --fuzz-dir tests/fuzz --target-dir "$out/build" "$target" "$out/corpus/$target" "$seeds" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 \
        -max_len=16384 -artifact_prefix="$out/found/$target-" -print_final_stats=1 \
        ${dictionary[@]+"${dictionary[@]}"} 2>&1 | grep -E "^(==|SUMMARY|stat::number|thread|artifact|error|warning)|panicked|DONE|Done" || {
        echo "$target: FAILED"
        exit 1
    }
done
