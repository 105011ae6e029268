#!/usr/bin/env bash
# Every real cache under tests/data/kv, converted and moved live, and compared by a second implementation.
# Needs python3 with venv and pip; installs numpy and safetensors into target/venv.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/venv
if ! "$venv/bin/python" -c 'import numpy, safetensors' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy safetensors
fi
verify=("$venv/bin/python" tests/data/kv/verify.py)

cargo build --release --bin moai
moai=${CARGO_TARGET_DIR:-target}/release/moai
out=target/cases

# The cases themselves first: what is expected must be what the second implementation computes.
"${verify[@]}"

wrong=0
count=0
for case in tests/data/kv/*/; do
    name=$(basename "$case")
    for command in convert run; do
        rm -rf "${out:?}/$command/$name"
        count=$((count + 1))
        if "$moai" "$command" "$case/producer.json" "$case/consumer.json" --out "$out/$command/$name" >/dev/null &&
            "${verify[@]}" compare "$case" "$out/$command/$name" >/dev/null; then
            echo "$command $name: equal"
        else
            echo "$command $name: WRONG"
            "${verify[@]}" compare "$case" "$out/$command/$name" || true
            wrong=$((wrong + 1))
        fi
    done
done
echo "$((count - wrong)) of $count equal"
# At least 20 cases, so that an empty folder is no success.
[[ $wrong -eq 0 && $count -ge 40 ]]
