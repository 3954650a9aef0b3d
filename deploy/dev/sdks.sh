#!/usr/bin/env bash
# Runs the Open Job Spec's own SDKs, as they are, against a gateway, and writes what works into docs/sdks.md.
#   sdks.sh python:0.3.0:FOLDER javascript:0.4.0:FOLDER ...   language, version, and sources of each, such as a git checkout
# Needs redis-server, a gateway (GALLEY_TEST_BINARIES, else target/debug), and python3 with venv, node with npm, or ruby.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

work=$(mktemp -d)
trap 'stop_all; rm -rf "$work"' EXIT
find_redis_server
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
start "$REDIS_SERVER" --port "$port" --bind 127.0.0.1 --save "" --dir "$work" --logfile redis.log
export GALLEY__REDIS__URL=redis://127.0.0.1:$port GALLEY__GATEWAY__LISTEN=127.0.0.1:0 GALLEY__LOG__FORMAT=json
# The retry policy of the one for Python cannot ask for dead letters
export GALLEY__MAINTENANCE__SWEEP_MS=100 GALLEY__JOBS__ON_EXHAUSTION=dead_letter
start "${GALLEY_TEST_BINARIES:-$target/debug}/gateway" >"$work/gateway.log"
url=
while [ -z "$url" ]; do
    sleep 0.1
    kill -0 "$last_pid"
    url=$(sed -nE 's/.*"event":"[a-z_.]*\.listening".*"address":"([^"]*)".*/http:\/\/\1/p' "$work/gateway.log" | head -n 1)
done

# drive NAME COMMAND...: keeps what a driver says
drive() {
    local name=$1
    shift
    if ! "$@" "$url" >"$work/$name.tsv" 2>"$work/$name.log"; then
        tail -n 20 "$work/$name.log" >&2
        printf 'load\tdoes not load: %s\n' "$(grep -m 1 -E 'Error' "$work/$name.log")" >"$work/$name.tsv"
    fi
    sed "s/^/$name: /" "$work/$name.tsv"
}

python() {
    python3 -m venv "$work/$1"
    # It imports cryptography, and does not say that it needs it
    with_retries "$work/$1/bin/python" -m pip install --quiet "$2" cryptography
    drive "$1" "$work/$1/bin/python" deploy/dev/sdks/python.py
    # These do not understand the answers
    case $1 in *-0.4.*) drive "$1-with-hook" "$work/$1/bin/python" deploy/dev/sdks/python.py --hook ;; esac
}

javascript() {
    mkdir "$work/$1-sdk" "$work/$1"
    cp -R "$2/." "$work/$1-sdk/"
    # Its types have errors, and the compiler writes the program all the same
    (cd "$work/$1-sdk" && npm install --silent --no-audit --no-fund --ignore-scripts &&
        { npx tsc -p tsconfig.json >/dev/null || true; } &&
        npm pack --silent --ignore-scripts --pack-destination "$work/$1" >/dev/null)
    cp deploy/dev/sdks/javascript.mjs "$work/$1/"
    (cd "$work/$1" && echo '{}' >package.json && npm install --silent --no-audit --no-fund ./openjobspec-sdk-*.tgz)
    drive "$1" node "$work/$1/javascript.mjs"
}

ruby() { drive "$1" "$(type -P ruby)" -I "$2/lib" deploy/dev/sdks/ruby.rb; }

for sdk in "$@"; do
    IFS=: read -r language version folder <<<"$sdk"
    case $language in python | javascript | ruby) "$language" "$language-$version" "$folder" ;; *) exit 2 ;; esac
done
python3 deploy/dev/sdks/table.py "$work"
