#!/usr/bin/env bash
# moai-perf translate beside numpy with ml_dtypes and torch on the same cases, one thread each:
#
#     bash perf/peers/translate.sh [--without-torch] [options of perf/peers/translate.py]
#
# Needs python3 with venv and pip; installs numpy, ml_dtypes and torch (some GB) into target/venv-peers.
set -euo pipefail
cd "$(dirname "$0")/../.."

wanted=(numpy ml_dtypes torch)
options=()
for option in "$@"; do
    case $option in
    --without-torch) wanted=(numpy ml_dtypes) && options+=("$option") ;;
    *) options+=("$option") ;;
    esac
done

venv=target/venv-peers
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
for package in "${wanted[@]}"; do
    "$venv/bin/python" -c "import $package" 2>/dev/null ||
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
done

cargo build --release --quiet --bin moai-perf
# One thread: what is compared is the loops, not the schedulers.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
exec "$venv/bin/python" perf/peers/translate.py \
    --moai "${CARGO_TARGET_DIR:-target}/release/moai-perf" ${options[@]+"${options[@]}"}
