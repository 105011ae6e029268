#!/usr/bin/env bash
# The C library as C programs use it: installed, its header as C99 and C++17, its symbols, the examples in two processes, bad
# input; under the sanitizers and under Valgrind. Ignored where a tool is missing, unless MOAI_REQUIRE has c.
set -euo pipefail
cd "$(dirname "$0")/.."

cc=${CC:-cc}
cxx=${CXX:-c++}
for tool in "$cc" "$cxx" make nm pkg-config valgrind; do
    if ! command -v "$tool" >/dev/null; then
        echo "there is no $tool"
        case ",${MOAI_REQUIRE:-}," in *,c,*) exit 1 ;; esac
        exit 77
    fi
done

target=${CARGO_TARGET_DIR:-target}
prefix=$(realpath -m "$target")/c/prefix
build=$(realpath -m "$target")/c/build
rm -rf "$prefix" "$build"
mkdir -p "$build"
cargo xtask install --prefix "$prefix" --profile dev
header=$prefix/include/moai_fabric.h
lib=$prefix/lib/libmoai_fabric.so.1
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig

echo "-- the header by itself, as C99 and C++17"
strict="-Wall -Wextra -Werror -pedantic"
printf '#include <moai_fabric.h>\nint main(void) { return (int)moai_pull_init().version - 1; }\n' >"$build/header.c"
cp "$build/header.c" "$build/header.cc"
# shellcheck disable=SC2086 # a list of options
"$cc" -std=c99 $strict -I"$prefix/include" -aux-info "$build/prototypes" -o "$build/header" "$build/header.c"
# shellcheck disable=SC2086
"$cxx" -std=c++17 $strict -I"$prefix/include" -o "$build/header++" "$build/header.cc"
"$build/header"
"$build/header++"

echo "-- what is exported is what is declared"
# The compiler says which functions the header declares; inline ones are defined there.
grep -F "$header" "$build/prototypes" | grep -v ' static ' | grep -o 'moai_[a-z0-9_]* (' | tr -d ' (' |
    grep -v '_init$' | sort -u >"$build/declared"
nm -D --defined-only "$lib" | awk '$2 == "T" { print $3 }' | sort >"$build/exported"
sed 's/$/@@MOAI_1/' "$build/declared" | diff - "$build/exported"
[[ $(wc -l <"$build/declared") -gt 90 ]]
readelf -d "$lib" | grep -q 'SONAME.*\[libmoai_fabric.so.1\]'
if nm -D --defined-only "$lib" | awk '$2 != "T" && $2 != "A"' | grep .; then
    echo "something else is exported"
    exit 1
fi

echo "-- the examples, by make and pkg-config"
for example in producer consumer; do
    make -s -C bindings-c/examples "$example" CC="$cc"
    mv "bindings-c/examples/$example" "$build/"
done
for transports in tcp shm; do
    MOAI_TRANSPORTS=$transports bash bindings-c/tests/pair.sh "$build/producer" "$build/consumer"
done
if command -v cmake >/dev/null; then
    echo "-- the examples, by CMake"
    cmake -S bindings-c/examples -B "$build/cmake" >/dev/null
    cmake --build "$build/cmake" >/dev/null
    bash bindings-c/tests/pair.sh "$build/cmake/producer" "$build/cmake/consumer"
fi
echo "-- the static library"
# shellcheck disable=SC2046,SC2086
"$cc" -std=c99 $strict -D_POSIX_C_SOURCE=200809L -I"$prefix/include" -o "$build/static" bindings-c/examples/producer.c \
    "$prefix/lib/libmoai_fabric.a" $(pkg-config --static --libs-only-l moai_fabric | sed 's/-lmoai_fabric//')
bash bindings-c/tests/pair.sh "$build/static" "$build/consumer"

compile() { # output, source, options…
    local out=$1 source=$2
    shift 2
    # shellcheck disable=SC2046,SC2086
    "$cc" -std=c99 $strict -D_DEFAULT_SOURCE -g -O1 "$@" $(pkg-config --cflags moai_fabric) -o "$out" "$source" \
        $(pkg-config --libs moai_fabric) -Wl,-rpath,"$prefix/lib" -pthread
}

echo "-- under AddressSanitizer and UndefinedBehaviorSanitizer"
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
for test in bad_input transfers; do
    compile "$build/$test.asan" "bindings-c/tests/$test.c" -fsanitize=address,undefined -fno-sanitize-recover=all
    "$build/$test.asan"
done
for example in producer consumer; do
    compile "$build/$example.asan" "bindings-c/examples/$example.c" -fsanitize=address,undefined -fno-sanitize-recover=all
done
MOAI_TRANSPORTS=tcp bash bindings-c/tests/pair.sh "$build/producer.asan" "$build/consumer.asan"
MOAI_TRANSPORTS=shm bash bindings-c/tests/pair.sh "$build/producer.asan" "$build/consumer.asan"

echo "-- under Valgrind"
memcheck=(valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite --child-silent-after-fork=yes)
for test in bad_input transfers; do
    compile "$build/$test" "bindings-c/tests/$test.c"
    "${memcheck[@]}" "$build/$test"
done
MOAI_TRANSPORTS=tcp bash bindings-c/tests/pair.sh "$build/producer" "$build/consumer" "${memcheck[@]}"
echo "the C library passed"
