#!/bin/sh
# Starts a node of cluster.yml by the name of its service, `redis` or `redis-2` to `redis-6`, or forms the cluster: `form`.
# Nodes have fixed addresses: one that had the address of another one before would be taken for that. The passwords are in files
# that only these containers have. Busybox and redis-cli have all that is used here.
set -eu
umask 077
secrets=/run/galley/redis
name=$1
password=$(cat "$secrets/password")
nodes="redis redis-2 redis-3 redis-4 redis-5 redis-6"
# As in cluster.yml
network=10.213.77
export REDISCLI_AUTH="$password"

# ask NODE COMMAND...
ask() {
    node=$1
    shift
    timeout 3 redis-cli -h "$node" "$@" 2>/dev/null
}

# number_of NODE: the last part of its address
number_of() {
    case $1 in redis) echo 11 ;; *) echo "1${1#redis-}" ;; esac
}

if [ "$name" = form ]; then
    set --
    for node in $nodes; do
        until ask "$node" ping | grep -q PONG; do sleep 1; done
        set -- "$@" "$network.$(number_of "$node"):6379"
    done
    # Once only: the slots stay
    if ask redis cluster info | grep -q '^cluster_slots_assigned:0'; then
        redis-cli --cluster create "$@" --cluster-replicas 1 --cluster-yes
    fi
    for node in $nodes; do
        until ask "$node" cluster info | grep -q '^cluster_state:ok'; do sleep 1; done
        while ask "$node" info replication | grep -q '^master_link_status:down'; do sleep 1; done
    done
    exit
fi

# A cluster has database 0 only, and so have the names of pub/sub channels
sed -e 's/&galley:5:/\&galley:0:/g' -e '/^user \(gateway\|queue-worker\|pubsub-worker\) /s/$/ +asking +cluster|info +cluster|slots/' \
    "$secrets/users.acl" >/data/users.acl
{
    grep -v '^aclfile ' "$secrets/redis.conf"
    printf '\n# Added by cluster.sh\n'
    printf 'aclfile /data/users.acl\nmasteruser default\nmasterauth %s\n' "$password"
    printf 'cluster-enabled yes\ncluster-node-timeout 5000\ncluster-require-full-coverage no\n'
    # A replica that has nothing yet takes over for nobody
    printf 'repl-diskless-sync-delay 0\n'
    printf 'cluster-announce-ip %s.%s\n' "$network" "$(number_of "$name")"
    printf 'cluster-announce-hostname %s\ncluster-preferred-endpoint-type hostname\n' "$name"
} >/data/redis.conf
exec redis-server /data/redis.conf
