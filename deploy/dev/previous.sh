# shellcheck shell=bash
# Sourced after redis.sh: builds the programs of deploy/dev/previous-version, for the test of a rolling upgrade.
# build_previous sets PREVIOUS to the folder that holds them, or to nothing where no version is named; it is false where the commit
# cannot be had. It comes before the build of today's programs, which take the same names below target/debug. Profile and target
# folder are those of today, so only Galley's own crates are compiled for it.

# shellcheck disable=SC2154 # redis.sh sets folder and target
build_previous() {
    local commit name source=$folder/previous/source programs=(gateway queue-worker pubsub-worker) packages=()
    commit=$(sed -n 's/^\([0-9a-f]\{40\}\)$/\1/p' deploy/dev/previous-version)
    PREVIOUS=
    if [ -z "$commit" ]; then
        echo "deploy/dev/previous-version names no commit: there is no version to upgrade from"
        return
    fi
    PREVIOUS=$folder/previous/$commit
    for name in "${programs[@]}"; do
        packages+=(--package "$name")
    done
    if [ -x "$PREVIOUS/${programs[2]}" ]; then
        return
    fi
    # A shallow clone, as CI makes it, can fetch the one commit that it lacks
    if ! git cat-file -e "$commit^{commit}" 2>/dev/null && ! with_retries git fetch --quiet --depth 1 origin "$commit"; then
        echo "commit $commit is not in this clone and cannot be fetched from its origin (git fetch --unshallow)" >&2
        return 1
    fi
    rm -rf "$folder/previous"
    mkdir -p "$source" "$PREVIOUS"
    git archive "$commit" | tar -x -C "$source" -f - || return 1
    echo "building the programs of ${commit:0:9}"
    cargo build --locked --manifest-path "$source/Cargo.toml" --target-dir "$target" "${packages[@]}" --bins || return 1
    for name in "${programs[@]}"; do
        cp "$target/debug/$name" "$PREVIOUS/" || return 1
    done
    rm -rf "$source"
}
