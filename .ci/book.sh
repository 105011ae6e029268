#!/usr/bin/env bash
# The book, into target/book. Its examples are run by `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools
export PATH="$PATH:$tools/bin"
if ! command -v mdbook >/dev/null; then
    # Only what builds a book, unoptimised: it is built once and runs for a second.
    cargo install mdbook --locked --debug --no-default-features --features search --root "$tools"
fi
log=$(mdbook build docs 2>&1) || { echo "$log"; exit 1; }
echo "$log"
# A warning is a broken book.
if grep -qE 'WARN|ERROR' <<<"$log"; then
    exit 1
fi
