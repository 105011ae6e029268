#!/usr/bin/env bash
# pair.sh PRODUCER CONSUMER [WRAPPER...]: runs both examples as two processes; fails if either does, or one value is wrong.
set -euo pipefail
producer=$1 consumer=$2
shift 2
work=$(mktemp -d)
trap 'kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
"$@" "$producer" >"$work/out" &
pid=$!
for _ in $(seq 600); do
    [[ -s $work/out ]] && [[ $(wc -l <"$work/out") -ge 1 ]] && break
    kill -0 "$pid" 2>/dev/null || { echo "the producer ended before its offer"; exit 1; }
    sleep 0.1
done
read -r -a words <"$work/out"
"$@" "$consumer" "${words[@]}"
wait "$pid"
