#!/usr/bin/env bash
# The crate with vector loops on another architecture: built for aarch64, whose baseline has NEON, and run by QEMU.
# Ignored, and said so, where there is no emulator, linker or standard library for it; MOAI_REQUIRE=aarch64 makes that
# a failure. To install them:
#   rustup target add aarch64-unknown-linux-gnu
#   apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
lacking=()
command -v qemu-aarch64 >/dev/null || lacking+=("qemu-aarch64")
command -v aarch64-linux-gnu-gcc >/dev/null || lacking+=("aarch64-linux-gnu-gcc")
[[ -d $(rustc --print sysroot)/lib/rustlib/$target ]] || lacking+=("the standard library of $target")
if [[ ${#lacking[@]} -gt 0 ]]; then
    if [[ " ${MOAI_REQUIRE:-} " =~ [\ ,]aarch64[\ ,] ]]; then
        printf 'aarch64: %s missing, and MOAI_REQUIRE asks for it\n' "${lacking[@]}"
        exit 1
    fi
    printf 'aarch64: ignored, %s is missing\n' "${lacking[@]}"
    exit 77 # ignored: neither passed nor failed
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
# An emulated core is some twenty times slower.
export MOAI_CASES="${MOAI_CASES:-100}"
# The table of the book tries all pairs, most of what the rest takes together; it is held by the tests of the host.
cargo test -p moai-translate --target "$target" --lib --tests -- --skip the_book_lists_the_pairs
