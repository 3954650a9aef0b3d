#!/bin/sh
# Starts a container of sentinel.yml: `sentinel`, or a server by the name of its service, `redis` or `redis-replica`.
# A server asks the sentinels first who is the primary, because that may have changed while it was down. The passwords are
# in files that only these containers have. Busybox and redis-cli have all that is used here.
set -eu
umask 077
secrets=/run/galley/redis
name=$1
password=$(cat "$secrets/password")

if [ "$name" = sentinel ]; then
    # A sentinel keeps what it learns in its file
    if [ ! -s /data/sentinel.conf ]; then
        cat >/data/sentinel.conf.new <<END
port 26379
dir /data
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $(hostname)
sentinel monitor galley redis 6379 2
sentinel auth-user galley default
sentinel auth-pass galley $password
sentinel down-after-milliseconds galley 5000
sentinel failover-timeout galley 30000
END
        mv /data/sentinel.conf.new /data/sentinel.conf
    fi
    exec redis-server /data/sentinel.conf --sentinel
fi

# ask_sentinels: the name of the primary's service; nothing if no sentinel answers
ask_sentinels() {
    for sentinel in sentinel-1 sentinel-2 sentinel-3; do
        primary=$(timeout 2 redis-cli -h "$sentinel" -p 26379 sentinel get-master-addr-by-name galley 2>/dev/null |
            head -n 1)
        case $primary in redis | redis-replica) echo "$primary" && return ;; esac
    done
}

# Without sentinels a server is what it was: Redis writes each change into its file, and an old primary that took part in
# nothing since must not become the source of everybody's data. The sentinels remember which one that is, and mend the rest
role_before() {
    before=$(sed -n 's/^replicaof \([^ ]*\) .*/\1/p' /data/redis.conf)
    echo "${before:-$name}"
}

primary=$(ask_sentinels)
if [ -z "$primary" ]; then
    if [ -s /data/redis.conf ]; then primary=$(role_before); else primary=redis; fi
fi
{
    cat "$secrets/redis.conf"
    printf '\n# Added by sentinel.sh\n'
    printf 'replica-announce-ip %s\nmasteruser default\nmasterauth %s\n' "$name" "$password"
    [ "$primary" = "$name" ] || printf 'replicaof %s 6379\n' "$primary"
} >/data/redis.conf.new
mv /data/redis.conf.new /data/redis.conf
exec redis-server /data/redis.conf
