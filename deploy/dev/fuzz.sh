#!/usr/bin/env bash
# Runs each fuzz target of crates/fuzz for SECONDS (default 60), with what the corpus has as a start. What crashes is kept in
# crates/fuzz/corpus, where make test replays it until it is mended. Needs a compiler for C++ (libFuzzer is in the crate
# libfuzzer-sys).
#   fuzz.sh                    every target
#   fuzz.sh TARGET...          those
#   SECONDS_EACH=600 fuzz.sh   for longer
#   fuzz.sh --merge            takes into the corpora what earlier runs found and what covers more, at most MAX_INPUTS each
# It builds with the flags of cargo-fuzz without its sanitizer, so the stable compiler will do; there is no unsafe code to
# watch. With nightly and cargo-fuzz: cargo fuzz run --fuzz-dir crates/fuzz --features libfuzzer TARGET
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${SECONDS_EACH:-60}
max_inputs=${MAX_INPUTS:-40}
max_bytes=4096

host=$(rustc -vV | sed -n 's/^host: //p')
output=${CARGO_TARGET_DIR:-target}
found=$output/dev/fuzz
merge=
if [ "${1:-}" = --merge ]; then
    merge=yes
    shift
fi
if [ "$#" = 0 ]; then
    # shellcheck disable=SC2046 # names of letters
    set -- $(sed -nE 's/^    \("([a-z_]+)", .*/\1/p' crates/fuzz/src/lib.rs)
fi

flags=(--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
bins=()
for target in "$@"; do
    bins+=(--bin "$target")
done
echo "building $# targets"
RUSTFLAGS="${flags[*]}" cargo build --quiet --locked --profile fuzz --package fuzz --features libfuzzer "${bins[@]}" --target "$host"

failed=0
for target in "$@"; do
    program=$output/$host/fuzz/$target
    mkdir -p "$found/$target"
    if [ -n "$merge" ]; then
        merged=$(mktemp -d)
        "$program" -merge=1 -max_len="$max_bytes" -rss_limit_mb=1024 "$merged" "crates/fuzz/corpus/$target" "$found/$target" 2>/dev/null
        # Those that were written by hand stay; of the others the shortest
        (cd "$merged" && wc -c -- * | grep -v ' total$' | sort -n | awk -v most="$max_inputs" 'NR <= most { print $2 }') |
            while read -r name; do
                cp "$merged/$name" "crates/fuzz/corpus/$target/$name"
            done
        rm -r "$merged"
        continue
    fi
    printf '%-22s' "$target"
    if "$program" -max_total_time="$seconds" -max_len="$max_bytes" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="$found/crash-$target-" "$found/$target" "crates/fuzz/corpus/$target" >"$found/$target.log" 2>&1; then
        awk '/stat::number_of_executed_units/ { print $2 " inputs, no crash" }' "$found/$target.log"
    else
        failed=1
        echo "FAILED: see $found/$target.log"
        grep -m 3 -A 2 -E "panicked at|ERROR: libFuzzer|SUMMARY" "$found/$target.log" || true
        for crash in "$found/crash-$target-"*; do
            [ ! -f "$crash" ] || cp "$crash" "crates/fuzz/corpus/$target/"
        done
    fi
done
exit "$failed"
