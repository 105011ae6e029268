#!/usr/bin/env bash
# Builds all fuzz targets and runs each for some seconds, two at a time: bash .ci/fuzz.sh [SECONDS] [TARGET ...]
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

cargo fuzz build --fuzz-dir tests/fuzz --target-dir "$out/build"

run() {
    local target=$1 seeds=tests/fuzz/seeds/$1 dictionary=()
    mkdir -p "$out/corpus/$target" "$out/found"
    [[ -d $seeds ]] || seeds=$out/seeds/$target
    [[ ! -f tests/fuzz/$target.dict ]] || dictionary=("-dict=tests/fuzz/$target.dict")
    cargo fuzz run --fuzz-dir tests/fuzz --target-dir "$out/build" "$target" "$out/corpus/$target" "$seeds" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 \
        -max_len=16384 -artifact_prefix="$out/found/$target-" -print_final_stats=1 \
        ${dictionary[@]+"${dictionary[@]}"} >"$out/$target.log" 2>&1
}

show() {
    local target=$1 process=$2 rc=0
    wait "$process" || rc=$?
    echo "== $target, $seconds s"
    grep -E "^(==|SUMMARY|stat::number|thread|artifact|error|warning)|panicked|DONE|Done" "$out/$target.log" || rc=1
    if [[ $rc -ne 0 ]]; then
        tail -n 20 "$out/$target.log"
        echo "$target: FAILED"
        failed=1
    fi
}

failed=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
    processes=()
    for target in "${targets[@]:i:2}"; do
        run "$target" &
        processes+=($!)
    done
    for j in "${!processes[@]}"; do
        show "${targets[i + j]}" "${processes[j]}"
    done
done
exit $failed
