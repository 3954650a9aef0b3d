#!/usr/bin/env bash
# Packs the crates that are for programs of others as crates.io would get them, and builds each from its package alone.
#   publish.sh             a dry run: uploads nothing
#   publish.sh --execute   uploads them; cargo needs a token
set -euo pipefail
cd "$(dirname "$0")/../.."

crates=(galley-client)

case ${1:-} in
    '') mode=(--dry-run) ;;
    --execute) mode=() ;;
    *) exit 2 ;;
esac
for crate in "${crates[@]}"; do
    cargo publish --locked "${mode[@]+"${mode[@]}"}" --package "$crate"
done
