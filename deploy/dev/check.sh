#!/usr/bin/env bash
# What must hold for every commit besides the tests. Installs the two tools that are no part of Rust if they are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

# tool NAME VERSION: from crates.io, without optimising it: it runs for a second
tool() {
    command -v "$1" >/dev/null || cargo install --quiet --locked --debug --root "$folder/tools" "$1" --version "$2"
}
export PATH=$folder/tools/bin:$PATH

step() { printf '== %s\n' "$*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --locked --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --workspace --no-deps --document-private-items
tool cargo-machete 0.9.2
step cargo machete
tool cargo-deny 0.20.2
# Advisories need the network beyond the registry; `cargo deny check advisories` where there is one
step cargo deny --locked check bans licenses sources
# One configuration for compose and Kubernetes; kustomize reads only what lies beside it
step cmp deploy/redis.conf k8s/base/redis.conf
for script in deploy/dev/*.sh .ci/run; do
    step bash -n "$script"
done
