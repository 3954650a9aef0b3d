#!/usr/bin/env bash
# Builds and runs everything on this machine until Ctrl-C: a Redis (yours, if GALLEY__REDIS__URL names one), the
# gateway, a queue-worker and a pubsub-worker, with their logs in one stream.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

prober=
trap 'stop_all; [ -z "$prober" ] || kill "$prober" 2>/dev/null; echo stopped 2>/dev/null' EXIT
trap 'exit 0' INT TERM HUP

# start_service NAME PROGRAM...: with its name before each line of its log
start_service() {
    local name=$1
    shift
    start_logged -e "s/^/$(printf '%-14s' "$name")| /" "$@"
}

# Locks descriptor 9 for as long as a process has it open; false if another one has the lock. Perl's lock is the same as
# that of flock, which macOS lacks.
lock() {
    if command -v flock >/dev/null; then
        flock -n 9
    elif command -v perl >/dev/null; then
        perl -e 'use Fcntl ":flock"; open(my $file, ">>&=", 9) or exit 0; exit(flock($file, LOCK_EX | LOCK_NB) ? 0 : 1)'
    fi
}

start_redis() {
    local data=$folder/redis port
    mkdir -p "$data"
    # Two servers must never write to one append-only file. The server inherits the lock, and keeps it if this script is
    # killed
    exec 9>"$data/lock"
    if ! lock; then
        echo "another make run uses $data: stop it, or set GALLEY__REDIS__URL" >&2
        exit 1
    fi
    for port in $(seq 6390 6490); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    start_service redis "$REDIS_SERVER" --port "$port" --bind 127.0.0.1 --dir "$data" --appendonly yes --save "" \
        --loglevel warning
    export GALLEY__REDIS__URL=redis://127.0.0.1:$port/5
}

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

probe() { # HOST PORT
    local status=
    exec 3<>"/dev/tcp/$1/$2" || return 1
    printf 'GET /health/ready HTTP/1.0\r\n\r\n' >&3
    read -r -t 2 status <&3 || true
    [[ $status == HTTP/1.?\ 200* ]]
}

is_ready() { # ADDRESS
    probe "${1%:*}" "${1##*:}" 2>/dev/null &
    prober=$!
    # Connecting has no limit of its own
    ends_within 2 "$prober" || kill "$prober" 2>/dev/null
    local status=0
    wait "$prober" 2>/dev/null || status=$?
    prober=
    return "$status"
}

wait_ready() { # NAME ADDRESS
    for _ in $(seq 100); do
        # Its own process first: somebody else may answer on that port
        kill -0 "$last_pid" 2>/dev/null || break
        if is_ready "$2" && sleep 0.1 && kill -0 "$last_pid" 2>/dev/null; then
            return
        fi
        sleep 0.1
    done
    sleep 0.2
    echo "$1 does not get ready at $2: see its log above" >&2
    exit 1
}

# A key that may do everything, made once, unless the settings say otherwise
make_key() {
    [ -z "${GALLEY__AUTH__MODE:-}${GALLEY__AUTH__KEYS_FILE:-}${GALLEY__AUTH__FIRST_KEY:-}" ] || return 0
    local keys=$folder/keys.toml
    mkdir -p "$folder"
    if [ ! -s "$folder/key" ] || [ ! -s "$keys" ]; then
        rm -f "$keys"
        local scopes=jobs:write,jobs:read,work,channels:publish,channels:subscribe,subscriptions,admin:read,admin:write
        (umask 077 && "$target/debug/gateway" keys create --name "make run" --scopes "$scopes" --file "$keys" >"$folder/key")
    fi
    export GALLEY__AUTH__KEYS_FILE=$keys
    key=$(cat "$folder/key")
}

# Returns when one of the services has ended
wait_any() {
    local pid
    while true; do
        for pid in "${pids[@]}"; do
            kill -0 "$pid" 2>/dev/null || return 0
        done
        sleep 1
    done
}

gateway=$(address GATEWAY 8080)
queue_worker=$(address QUEUE_WORKER 8081)
pubsub_worker=$(address PUBSUB_WORKER 8082)
check_free GATEWAY "$gateway"
check_free QUEUE_WORKER "$queue_worker"
check_free PUBSUB_WORKER "$pubsub_worker"
[ -n "${GALLEY__REDIS__URL:-}" ] || find_redis_server
echo "building (the first time takes some minutes)"
cargo build --workspace --bins
if [ -n "${GALLEY__REDIS__URL:-}" ]; then
    redis="the one that GALLEY__REDIS__URL names"
else
    start_redis
    redis=$GALLEY__REDIS__URL
fi
key=
make_key
export GALLEY__LOG__FORMAT=${GALLEY__LOG__FORMAT:-pretty}
export GALLEY__QUEUE_WORKER__DEMO_HANDLERS=${GALLEY__QUEUE_WORKER__DEMO_HANDLERS:-true}
for service in "gateway=$gateway" "queue-worker=$queue_worker" "pubsub-worker=$pubsub_worker"; do
    start_service "${service%%=*}" "$target/debug/${service%%=*}"
    wait_ready "${service%%=*}" "${service#*=}"
done

cat <<READY

Galley runs:
  page      http://$gateway/
  jobs      http://$gateway/ojs/v1/jobs
  health    http://$gateway/health/ready
  metrics   http://$gateway/metrics
  redis     $redis
  key       ${key:-as your settings say}

Try it in another terminal: enqueue a job, see how it ended, publish a message.

  export GALLEY_URL=http://$gateway GALLEY_KEY=$key
  JOB=\$(curl -s http://$gateway/ojs/v1/jobs -H "Authorization: Bearer \$GALLEY_KEY" -H 'Content-Type: application/json' -d '{"type":"test.echo","args":["hello"]}' | sed 's/.*"id":"\([^"]*\)".*/\1/')
  curl -s "http://$gateway/ojs/v1/jobs/\$JOB?wait_ms=5000" -H "Authorization: Bearer \$GALLEY_KEY"
  curl -s http://$gateway/v1/channels/hello/messages -H "Authorization: Bearer \$GALLEY_KEY" -H 'Content-Type: text/plain' --data-binary 'dinner is ready'

Ctrl-C stops everything; a second Ctrl-C kills what has not stopped.

READY
wait_any
echo "one of the services ended" >&2
exit 1
