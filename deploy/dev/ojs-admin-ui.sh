#!/usr/bin/env bash
# Tries the admin UI of the Open Job Spec against a running gateway: builds it in a folder outside of this repository, opens
# its pages in headless Chromium and looks for what the gateway has. Needs git, node, npm and chromium; says so and ends with 0
# without them, or when the sources cannot be had, unless OJS_ADMIN_UI_REQUIRED is set.
#
#   deploy/dev/ojs-admin-ui.sh GATEWAY_URL QUEUE JOB_ID DEAD_LETTER_ID WORKER_ID
set -euo pipefail

gateway=$1 queue=$2 job=$3 dead_letter=$4 worker=$5
sources=${OJS_ADMIN_UI_SOURCES:-https://github.com/openjobspec/ojs-admin-ui}
folder=${OJS_ADMIN_UI_FOLDER:-${TMPDIR:-/tmp}/ojs-admin-ui}
here=$(cd "$(dirname "$0")" && pwd)

skip() {
    echo "skipped: $1"
    [ -z "${OJS_ADMIN_UI_REQUIRED:-}" ] || exit 1
    exit 0
}

for program in git node npm chromium; do
    command -v "$program" >/dev/null || skip "there is no $program"
done
if [ ! -f "$folder/dist-app/index.html" ]; then
    rm -rf "$folder"
    git clone -q --depth 1 "$sources" "$folder" || skip "the sources cannot be had from $sources"
    (cd "$folder" && npm ci --no-audit --no-fund --ignore-scripts >/dev/null && npx vite build >/dev/null) ||
        skip "the sources cannot be built"
fi

url_file=$(mktemp)
node "$here/ojs-admin-ui.mjs" "$folder/dist-app" "$gateway" >"$url_file" &
server=$!
trap 'kill "$server" 2>/dev/null; rm -f "$url_file"' EXIT
for _ in $(seq 100); do
    [ -s "$url_file" ] && break
    sleep 0.1
done
url=$(cat "$url_file")

failed=0
# Opens a page and looks for texts in it
shows() { # PAGE TEXT...
    local page=$1 shown
    shift
    shown=$(chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$(mktemp -d)" \
        --virtual-time-budget=8000 --dump-dom "$url/ojs/admin/$page" 2>/dev/null)
    for text in "$@"; do
        if ! grep -qF -- "$text" <<<"$shown"; then
            echo "the page '$page' does not show '$text'"
            failed=1
        fi
    done
    # What React shows when a component cannot read an answer
    if grep -qiE 'something went wrong|cannot read properties' <<<"$shown"; then
        echo "the page '$page' shows an error"
        failed=1
    fi
}

shows '' Dashboard
shows queues "$queue"
shows jobs "${job:0:8}"
shows workers "$worker"
shows dead-letter "${dead_letter:0:8}"
[ "$failed" = 0 ] && echo "the admin UI shows queues, jobs, workers and dead letters"
exit "$failed"
