#!/usr/bin/env bash
# Licences, bans and sources of everything that is depended on, by deny.toml.
# Advisories need a database from the network: cargo deny check advisories.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools
export PATH="$PATH:$tools/bin"
if ! command -v cargo-deny >/dev/null; then
    # Unoptimised: it is built once and runs for a second.
    cargo install cargo-deny --locked --debug --root "$tools"
fi
cargo deny --log-level error check licenses bans sources
