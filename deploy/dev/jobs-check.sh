#!/usr/bin/env bash
# Checks that no job is lost or recorded twice while everything breaks, on a Redis of its own; takes the options of
# `bench jobs-check`. With soak, reconnect or power-failure as its first word it runs that row instead. Histories, verdicts
# and pictures go into target/jobs-check. It measures nothing, so the programs are not optimised: GALLEY_CHECK_PROFILE=release
# changes that.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
row=jobs-check
case ${1:-} in
    soak | reconnect | power-failure)
        row=$1
        shift
        ;;
esac
profile=${GALLEY_CHECK_PROFILE:-dev}
packages=(--package bench --package gateway --package jobs-check)
[ "$row" != reconnect ] || packages+=(--package queue-worker)
cargo build --quiet --locked --profile "$profile" --bins "${packages[@]}"
[ "$profile" = dev ] && profile=debug
exec "$target/$profile/bench" "$row" --results "$target/jobs-check" "$@"
