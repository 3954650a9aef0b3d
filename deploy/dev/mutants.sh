#!/usr/bin/env bash
# Shows that the jobs check finds what it is for: builds Galley with one mechanism switched off after the other, as the
# patches in deploy/dev/mutants say, and runs the check. Fails if a patch does not apply, or the check says nothing of what
# the patch names. Names of patches as arguments choose some of them. SEED chooses the plan.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
patches=$PWD/deploy/dev/mutants work=$target/mutants seed=${SEED:-1}
[ "$#" -gt 0 ] || set -- fencing reclaim idempotency renewal

# A copy of the source, and a folder for what is built from it that all mutants share: the second one builds what changed
rm -rf "$work/source" "$work/results"
mkdir -p "$work/source"
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$work/source"
cd "$work/source"
# A run that was stopped may have left what it built from a patched file: it must not count as newer than the file
for patch in "$patches"/*.patch; do
    sed -n 's|^+++ b/||p' "$patch" | xargs touch
done

run_mutant() { # NAME
    local patch=$patches/$1.patch arguments expected folder=$work/results/$1 found
    arguments=$(sed -n 's/^run: //p' "$patch")
    expected=$(sed -n 's/^caught by: //p' "$patch")
    if ! patch --quiet --strip 1 --fuzz 0 <"$patch"; then
        echo "$patch does not apply any more" >&2
        return 1
    fi
    CARGO_TARGET_DIR=$work/target cargo build --quiet --locked --bins --package bench --package gateway --package jobs-check
    mkdir -p "$folder"
    # shellcheck disable=SC2086 # arguments are several words
    "$work/target/debug/bench" jobs-check --results "$folder" --seed "$seed" $arguments >"$folder/log" 2>&1 || true
    patch --quiet --strip 1 --reverse <"$patch"
    found=$(python3 - "$folder/jobs-check-$seed/verdict.json" "$expected" <<'PYTHON'
import collections, json, sys
kinds = collections.Counter(found["violation"] for found in json.load(open(sys.argv[1]))["violations"])
if kinds.keys() & set(sys.argv[2].split()):
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
PYTHON
    ) || found=
    if [ -z "$found" ]; then
        echo "$1: NOT CAUGHT by jobs-check --seed $seed $arguments; expected one of: $expected; see $folder/log" >&2
        return 1
    fi
    echo "$1: caught by jobs-check --seed $seed $arguments: $found"
}

status=0
for name in "$@"; do
    run_mutant "$name" || status=1
done
exit "$status"
