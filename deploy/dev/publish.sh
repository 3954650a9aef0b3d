#!/usr/bin/env bash
# Packs the crates that are for programs of others as crates.io would get them, and builds each from its package alone.
#   publish.sh             a dry run: uploads nothing
#   publish.sh --execute   uploads them; cargo needs a token
set -euo pipefail
cd "$(dirname "$0")/../.."

# what a crate depends on stands before it
crates=(galley-client galley-common galley-model galley-store galley-delivery galley-worker)

case ${1:-} in
    '') mode=(--dry-run) ;;
    --execute) mode=() ;;
    *) exit 2 ;;
esac
# In one call: those that are not on crates.io yet are found among those that are packed
cargo publish --locked "${mode[@]+"${mode[@]}"}" "${crates[@]/#/--package=}"
