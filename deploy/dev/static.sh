#!/usr/bin/env bash
# Builds galley as one static program, which needs nothing of the machine it runs on but Linux: target/static/galley.
# With the C library of the host: glibc has had the resolvers of names and hosts in libc.a since 2.34, so that no library is
# loaded at run time. PROFILE=dev builds it faster.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${PROFILE:-dist}
target=${CARGO_TARGET_DIR:-target}

host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
    *-linux-gnu | *-linux-musl) ;;
    *) echo "a static program can be built on Linux only, not on $host" >&2 && exit 1 ;;
esac
# With a named target the flags are for the program only: procedural macros are libraries, which cannot be static
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --locked --package cli --profile "$profile" --target "$host"
built=$target/$host/$([ "$profile" = dev ] && echo debug || echo "$profile")/galley
mkdir -p "$target/static"
cp "$built" "$target/static/galley"
# ldd ends with 1 for a program without an interpreter
linked=$(ldd "$target/static/galley" 2>&1 || true)
case $linked in
    *'statically linked'* | *'not a dynamic executable'*) ;;
    *) echo "galley needs libraries: $linked" >&2 && exit 1 ;;
esac
"$target/static/galley" --version
