#!/usr/bin/env bash
# Writes a software bill of materials for each program into target/sbom, as CycloneDX 1.5 from Cargo.lock: NAME.cdx.json.
# Installs cargo-cyclonedx from crates.io if it is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh
version=0.5.9

export PATH=$folder/tools/bin:$PATH
command -v cargo-cyclonedx >/dev/null ||
    cargo install --quiet --locked --debug --root "$folder/tools" cargo-cyclonedx --version "$version"
mkdir -p "$target/sbom"
for program in gateway queue-worker pubsub-worker cli; do
    cargo cyclonedx --quiet --manifest-path "crates/$program/Cargo.toml" --format json --spec-version 1.5 \
        --override-filename sbom
    # It writes one beside the manifest of every crate of the workspace
    mv "crates/$program/sbom.json" "$target/sbom/$program.cdx.json"
    find crates examples -name sbom.json -delete
    echo "$target/sbom/$program.cdx.json"
done
