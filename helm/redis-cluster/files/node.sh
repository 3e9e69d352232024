#!/bin/sh
# Becomes one node of the cluster.  A node that comes back with an emptied disk must not return as an empty primary: the
# others would take its nothing for the truth.  So before redis-server takes this process over:
#
# 0. After a forced delete the node that it was may still run, on the same files: it waits until that one has ended.
# 1. A node that has its files starts as it is.
# 2. An emptied one asks the others what it is to them, until a replica was promoted in its place.  Where too few
#    primaries are left for an election, it tells its replica to take over without one.
# 3. It then writes itself the nodes.conf of a replica, with its old id, and copies everything from its primary.
#
# Where nobody can be promoted it returns as it was, with its slots and without its data: the log has it all, and it is
# replayed.  Where nobody knows it, the cluster has not been created yet, or everybody was emptied: it starts as a node
# of no cluster.
#
# Besides what cluster.sh needs:
#   PLACE            the machine it runs on (only create.sh asks)
#   ALSO_PASSWORD    a second password that is accepted, while the password is being changed
#   MAXMEMORY        e.g. 128mb

set -eu
trap "exit 1" TERM # the first process of a container does not end of it by itself
HERE=$(dirname "$0")
. "$HERE/cluster.sh"

DATA=${DATA:-/data}
RUN=${RUN:-/run/redis}
NOBODY_TIMEOUT_S=${NOBODY_TIMEOUT_S:-10}
ELECTION_TIMEOUT_S=8
TAKEOVER_TIMEOUT_S=3

main() {
    wait_for_predecessor
    settings >"$RUN/redis.conf"
    if is_emptied; then
        find_place
    fi
    exec redis-server "$RUN/redis.conf"
}

# redis-server inherits the lock, and holds it while it lives.
wait_for_predecessor() {
    exec 9>"$DATA/.lock"
    until flock -w 1 9; do
        say "another process still uses $DATA"
    done
}

settings() {
    umask 077
    cat "$HERE/redis.conf"
    echo "port $PORT"
    echo "cluster-port $((PORT + 10000))"
    echo "dir $DATA"
    echo "bind ${BIND:-* -::*}"
    echo "maxmemory ${MAXMEMORY:-128mb}"
    echo "cluster-announce-ip $SELF_ADDRESS"
    echo "cluster-announce-hostname $SELF"
    # Not for syslog, which is off: any client can ask for it, and so learn where this node runs.
    echo "syslog-ident ${PLACE:-unknown}"
    printf 'masterauth %s\n' "$(quoted "$REDISCLI_AUTH")"
    printf 'user default on resetpass %s %s ~* &* +@all\n' \
        "$(quoted ">$REDISCLI_AUTH")" "${ALSO_PASSWORD:+$(quoted ">$ALSO_PASSWORD")}"
}

quoted() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"; }

is_emptied() { ! [ -s "$DATA/nodes.conf" ] || ! [ -d "$DATA/appendonlydir" ]; }

find_place() {
    if ! wait_for "$NOBODY_TIMEOUT_S" somebody_knows_me; then
        say "nobody knows $SELF: it starts as a node of no cluster"
        return
    fi
    if wait_for "$ELECTION_TIMEOUT_S" write_nodes_conf || { a_replica_takes_over && wait_for "$TAKEOVER_TIMEOUT_S" write_nodes_conf; }; then
        say "$SELF was emptied, and comes back as a replica"
    elif write_nodes_conf -v as_it_was=1; then
        say "$SELF was emptied, and nobody can take its place: it comes back as it was"
    else
        say "$SELF was emptied, and the others are gone: it starts as a node of no cluster"
    fi
}

# CLUSTER NODES of the first other node that knows this one.
others_know() (
    for peer in $(others); do
        nodes=$(ask_name "$peer" CLUSTER NODES) || continue
        if printf '%s\n' "$nodes" | grep -q ",$SELF "; then
            printf '%s\n' "$nodes"
            exit 0
        fi
    done
    exit 1
)

somebody_knows_me() { others_know >/dev/null; }

# Needs a promotion, or as_it_was.
write_nodes_conf() {
    others_know | awk -v name="$SELF" -v address="$SELF_ADDRESS:$PORT@$((PORT + 10000))" "$@" -f "$HERE/returning.awk" >"$RUN/nodes.conf" &&
        cp "$RUN/nodes.conf" "$DATA/nodes.conf"
}

a_replica_takes_over() (
    replicas=$(others_know | awk -v name="$SELF" '
        { split($2, part, ","); split(part[1], at, ":") }
        part[2] == name && NF > 8 { mine = $1 }
        $3 ~ /slave/ && $3 !~ /fail|noaddr/ { sub(/:[0-9]+@[0-9]+$/, "", part[1]); address[$1] = part[1]; follows[$1] = $4 }
        END { for (id in address) if (follows[id] == mine) print address[id] }')
    for address in $replicas; do
        [ "$(ask "$address" CLUSTER FAILOVER TAKEOVER)" = OK ] && exit 0
    done
    exit 1
)

main
