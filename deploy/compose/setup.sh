#!/bin/sh
# Runs before everything else in compose, each time: makes the first API key, and a user of Redis with a password for each
# service and for you, which all stay until their volumes are removed, and the settings that hold them.
#   docker compose run --rm setup key               prints the key, which may do everything
#   docker compose run --rm setup redis-password    prints the password
# GALLEY_FIRST_KEY and GALLEY_REDIS_PASSWORD (or the file that GALLEY_REDIS_PASSWORD_FILE names) take the place of what is made.
# Busybox has all that is used here. Containers of other users read the files, so only volumes of those that need them
# hold them.
set -eu
umask 022
redis=/run/galley/redis
keys=/run/galley/keys
services=/run/galley/services

case ${1:-} in
    key) exec cat "$keys/first-key" ;;
    redis-password) exec cat "$redis/password" ;;
esac

# random LENGTH: letters and digits, of which 43 are 256 bits
random() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c "$1"; }

# write FILE TEXT: readers see it as a whole or not at all
write() {
    printf '%s\n' "$2" >"$1.new"
    mv "$1.new" "$1"
}

if [ -n "${GALLEY_FIRST_KEY:-}" ]; then
    write "$keys/first-key" "$GALLEY_FIRST_KEY"
elif [ ! -s "$keys/first-key" ]; then
    write "$keys/first-key" "glk_$(random 16)_$(random 43)"
fi

given=
[ ! -s /run/galley/given-redis-password ] || given=$(cat /run/galley/given-redis-password)
given=${GALLEY_REDIS_PASSWORD:-$given}
if [ -n "$given" ]; then
    write "$redis/password" "$given"
elif [ ! -s "$redis/password" ]; then
    write "$redis/password" "$(random 43)"
fi
password=$(cat "$redis/password")
case $password in
    *[!A-Za-z0-9._~-]*)
        echo "the password of Redis may have letters, digits and . _ ~ - only" >&2
        exit 1
        ;;
esac

# sha256 TEXT
sha256() { printf %s "$1" | sha256sum | cut -d' ' -f1; }

# deploy/redis.acl: each service may do what it needs. `default`, who may do everything, is for you
users=$(grep -v '^user default ' /etc/galley/redis.acl)
for service in gateway queue-worker pubsub-worker monitoring; do
    folder=$services/$service
    [ "$service" != monitoring ] || folder=$redis
    [ -s "$folder/$service-password" ] || write "$folder/$service-password" "$(random 43)"
    of_service=$(cat "$folder/$service-password")
    mark=@$(printf %s "$service" | tr a-z- A-Z_)_SHA256@
    users=$(printf '%s\n' "$users" | sed "s/$mark/$(sha256 "$of_service")/")
    # Apart from the URL, so that tls.yml can name another one
    settings="redis.url = \"redis://redis:6379/5\"
redis.username = \"$service\"
redis.password = \"$of_service\""
    [ "$service" != gateway ] || settings="$settings
auth.first_key = \"$(cat "$keys/first-key")\""
    [ "$service" = monitoring ] || write "$folder/galley.toml" "$settings"
done
write "$redis/users.acl" "user default on #$(sha256 "$password") ~* &* +@all
$users"
{
    cat /etc/galley/redis.conf
    printf '\n# Added by setup.sh\naclfile %s\n' "$redis/users.acl"
} >"$redis/redis.conf.new"
mv "$redis/redis.conf.new" "$redis/redis.conf"
echo "the API key: docker compose run --rm setup key"
