#!/usr/bin/env bash
# Undefined behaviour in vector loops, raw copies and lock-free structures, looked for by Miri.
# Ignored, and said so, where no toolchain has Miri; MOAI_REQUIRE=miri makes that a failure.
# To install it: rustup toolchain install nightly --component miri --component rust-src
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=(cargo +nightly)
if ! "${cargo[@]}" miri --version >/dev/null 2>&1; then
    if [[ " ${MOAI_REQUIRE:-} " =~ [\ ,]miri[\ ,] ]]; then
        echo "miri: missing, and MOAI_REQUIRE asks for it"
        exit 1
    fi
    echo "miri: ignored, no nightly toolchain with miri is installed"
    exit 77 # ignored: neither passed nor failed
fi

# Seeds and golden files come from outside of Miri's world.
export MIRIFLAGS="${MIRIFLAGS:-} -Zmiri-disable-isolation"
"${cargo[@]}" miri setup
# Miri has no vector instructions beyond the baseline, so this is the portable path, whose unsafe code is the copies:
# runs, tiles, images, rows made in place, params, and what the larger programs make of them. Sweeps over codes, formats
# and layouts are safe code, and would take it hours. All in all some four minutes of one core.
miri_test() {
    timeout 900 "${cargo[@]}" miri test -p moai-translate "$@"
}
miri_test --lib -- cpu::tests packing:: --skip tiles_of_every_unit
MOAI_CASES="${MOAI_CASES:-24}" miri_test --test programs
# Copies of many spans by raw pointers: under a minute.
timeout 300 "${cargo[@]}" miri test -p moai-memory --lib -- copy::
# Rings and their like, whose threads are real ones here and take their turns as Miri likes: a minute.
timeout 300 "${cargo[@]}" miri test -p moai-transport --lib -- sync::
