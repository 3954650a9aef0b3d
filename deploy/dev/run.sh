#!/usr/bin/env bash
# Builds everything and runs it on this machine with `galley dev` until Ctrl-C. What must be free or there is checked first,
# because a build takes minutes. Data and key stay in target/dev.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

# The listening address of a service: its setting, or the default
address() {
    local variable=GALLEY__$1__LISTEN
    local address=${!variable:-127.0.0.1:$2}
    if [[ ! $address =~ ^[0-9.]+:[1-9][0-9]*$ ]]; then
        echo "make run needs an IPv4 address and a fixed port in $variable, got $address" >&2
        exit 1
    fi
    echo "$address"
}

# Another program there would make a service end after the build
check_free() { # SETTING ADDRESS
    if (exec 3<>"/dev/tcp/${2%:*}/${2##*:}") 2>/dev/null; then
        echo "$2 is in use by another program: stop it, or set GALLEY__$1__LISTEN=127.0.0.1:PORT" >&2
        exit 1
    fi
}

for service in GATEWAY:8080 QUEUE_WORKER:8081 PUBSUB_WORKER:8082; do
    listen=$(address "${service%:*}" "${service#*:}")
    check_free "${service%:*}" "$listen"
    export "GALLEY__${service%:*}__LISTEN=$listen"
done
options=(--data "$folder")
if [ -z "${GALLEY__REDIS__URL:-}" ]; then
    find_redis_server
    options+=(--redis-server "$REDIS_SERVER")
fi
echo "building (the first time takes some minutes)"
cargo build --workspace --bins
exec "$target/debug/galley" dev "${options[@]}"
