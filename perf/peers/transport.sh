#!/usr/bin/env bash
# moai-perf put, get and latency beside NIXL, Mooncake, UCX and libfabric on the same pieces, in turns:
#
#     bash perf/peers/transport.sh [options of perf/peers/transport.py]
#
# Needs python3 with venv and pip, and libibverbs.so.1 for Mooncake; installs NIXL and Mooncake (some hundred MB) into
# target/venv-peers. UCX (ucx_perftest) and libfabric (fi_pingpong) take part where they are installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=target/venv-peers
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
has() {
    "$venv/bin/python" -c "import importlib.metadata as m; assert m.version('$1') == '$2'" 2>/dev/null
}
# NIXL asks for torch, which moving bytes does not need.
has nixl-cu12 1.5.1 || install --no-deps nixl-cu12==1.5.1
"$venv/bin/python" -c "import numpy" 2>/dev/null || install numpy
has mooncake-transfer-engine-non-cuda 0.3.13.post1 || install --no-deps mooncake-transfer-engine-non-cuda==0.3.13.post1

cargo build --release --quiet --bin moai-perf
exec "$venv/bin/python" perf/peers/transport.py --moai "${CARGO_TARGET_DIR:-target}/release/moai-perf" "$@"
