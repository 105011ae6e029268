#!/usr/bin/env bash
# Installs what the batteries need that a Rust toolchain does not bring, as far as this machine lets it:
# Miri (a nightly toolchain), etcd, an emulator, linker and standard library for aarch64, and what C programs are tried with.
# What cannot be installed is said here, and its battery is ignored.
set -uo pipefail

try() {
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then
        echo "setup: $what is there"
    else
        echo "setup: $what cannot be installed here"
    fi
}

apt() {
    [[ $(id -u) -eq 0 ]] || return 1
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

# Debian starts services of packages unless told not to.
apt_quietly() {
    local policy=/usr/sbin/policy-rc.d
    [[ $(id -u) -eq 0 && ! -e $policy ]] || { apt "$@"; return; }
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
    local rc=0
    apt "$@" || rc=$?
    rm -f $policy
    return $rc
}

try "Miri" timeout 300 rustup toolchain install nightly --profile minimal --component miri --component rust-src
try "the standard library for aarch64" timeout 120 rustup target add aarch64-unknown-linux-gnu
if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    try "QEMU and a linker for aarch64" apt qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
fi
if ! command -v etcd >/dev/null; then
    # Tests start their own; the service that the package would start is not wanted.
    try "etcd" apt_quietly etcd-server
fi
if ! command -v valgrind >/dev/null || ! command -v pkg-config >/dev/null || ! command -v cmake >/dev/null; then
    try "Valgrind, pkg-config and CMake" apt valgrind pkg-config cmake g++ make binutils
fi
exit 0
