#!/usr/bin/env bash
# Checks that no job is lost or recorded twice while everything breaks, on a Redis of its own; takes the options of
# `bench jobs-check`. Histories, verdicts and pictures go into target/jobs-check. It measures nothing, so the programs are not
# optimised: GALLEY_CHECK_PROFILE=release changes that.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
profile=${GALLEY_CHECK_PROFILE:-dev}
cargo build --quiet --locked --profile "$profile" --bins --package bench --package gateway --package jobs-check
[ "$profile" = dev ] && profile=debug
exec "$target/$profile/bench" jobs-check --results "$target/jobs-check" "$@"
