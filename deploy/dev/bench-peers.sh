#!/usr/bin/env bash
# Installs the other systems that the benchmark measures beside Galley, at pinned versions, below target/dev, and measures
# the rows that they take part in. One that cannot be installed is a row that says why.
#   bench-peers.sh            installs them and measures
#   bench-peers.sh install    only installs them
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

sources=crates/bench/peers
peers=$folder/peers
mkdir -p "$peers"

# attempt NAME COMMAND...: runs it; what it says last is the reason why rows of that kind are missing
attempt() {
    local name=$1 log=$peers/$1.log
    shift
    rm -f "$peers/$name.missing"
    echo "installing: $name"
    if ! "$@" >"$log" 2>&1; then
        tail -n 1 "$log" >"$peers/$name.missing"
        echo "not installed: $name: $(cat "$peers/$name.missing")" >&2
    fi
}

install_node() {
    command -v npm >/dev/null || { echo "npm is not installed"; return 1; }
    mkdir -p "$peers/node"
    cp "$sources"/package.json "$sources"/package-lock.json "$peers/node/"
    (cd "$peers/node" && npm ci --silent --no-audit --no-fund)
}

install_python() {
    command -v python3 >/dev/null || { echo "python3 is not installed"; return 1; }
    [ -x "$peers/python/bin/pip" ] || python3 -m venv "$peers/python" || return 1
    "$peers/python/bin/pip" install --quiet --disable-pip-version-check --requirement "$sources/requirements.txt"
}

install_rust() {
    cargo build --quiet --locked --release --manifest-path "$sources/Cargo.toml" --target-dir "$peers/rust"
}

# Debian's nginx and its module, unpacked and not installed: nothing of the machine changes
install_nchan() {
    local package=$peers/nchan/packages
    command -v apt-get >/dev/null || { echo "nchan comes from Debian, and this is another system"; return 1; }
    rm -rf "$peers/nchan"
    mkdir -p "$package"
    if ! (cd "$package" && apt-get --quiet download nginx libnginx-mod-nchan); then
        [ "$(id -u)" = 0 ] && apt-get --quiet update
        (cd "$package" && apt-get --quiet download nginx libnginx-mod-nchan) || return 1
    fi
    for package in "$package"/*.deb; do
        dpkg-deb --extract "$package" "$peers/nchan" || return 1
    done
    # The module makes a folder of its own choice, which only an installed nginx has: one below where it runs instead
    LC_ALL=C sed -i 's#/var/lib/nginx/#tmp/peer/nginx/#g' "$peers/nchan/usr/lib/nginx/modules/ngx_nchan_module.so"
    "$peers/nchan/usr/sbin/nginx" -v
}

attempt node install_node
attempt python install_python
attempt rust install_rust
attempt nchan install_nchan
[ "${1:-}" = install ] || exec deploy/dev/bench.sh peers
