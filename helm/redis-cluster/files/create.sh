#!/bin/sh
# Creates the cluster of nodes that run, once: half of the nodes as primaries, the other half as their replicas, each pair
# on two machines where that is possible.  Run again, it changes nothing.
#
# A creation that was interrupted before all slots were given away left nothing worth keeping, and is begun anew.  What was
# left to do after that heal.sh does.

set -eu
trap "exit 1" TERM # the first process of a container does not end of it by itself
HERE=$(dirname "$0")
. "$HERE/cluster.sh"

ANSWER_TIMEOUT_S=${ANSWER_TIMEOUT_S:-240}
KNOWN_TIMEOUT_S=60
SLOTS=16384

main() {
    wait_for "$ANSWER_TIMEOUT_S" exists_or_all_answer || { say "not all of these answer: $PEERS" && exit 1; }
    if exists; then
        say "the cluster exists"
        return
    fi
    plan=$(plan)
    say "pairs of primary and replica:" && echo "$plan"
    for name in $PEERS; do
        ask_name "$name" FLUSHALL >/dev/null
        ask_name "$name" CLUSTER RESET HARD >/dev/null
    done
    give_slots
    introduce
    wait_for "$KNOWN_TIMEOUT_S" replicas_follow || { say "the replicas do not follow" && exit 1; }
    wait_for "$KNOWN_TIMEOUT_S" is_complete || { say "not every node sees all slots and all nodes" && exit 1; }
    say "created"
}

exists() (
    for name in $PEERS; do
        if ask_name "$name" CLUSTER INFO | grep -q "^cluster_slots_assigned:$SLOTS"; then exit 0; fi
    done
    exit 1
)

all_answer() (
    for name in $PEERS; do
        [ "$(ask_name "$name" PING)" = PONG ] || exit 1
    done
)

exists_or_all_answer() { exists || all_answer; }

# A line "primary replica" for each pair.
plan() {
    for name in $PEERS; do
        echo "$name $(ask_name "$name" CONFIG GET syslog-ident | tail -n 1)"
    done | awk -f "$HERE/pairs.awk"
}

give_slots() {
    primaries=$(echo "$plan" | awk '{ print $1 }')
    count=$(echo "$primaries" | wc -l)
    number=0
    for name in $primaries; do
        first=$((SLOTS * number / count))
        number=$((number + 1))
        ask_name "$name" CLUSTER SET-CONFIG-EPOCH "$number" >/dev/null || true
        must "$name" CLUSTER ADDSLOTSRANGE "$first" "$((SLOTS * number / count - 1))"
    done
}

introduce() {
    host=${PEERS%% *}
    for name in $PEERS; do
        [ "$name" = "$host" ] || must "$host" CLUSTER MEET "$(address_of "$name")" "$PORT"
    done
}

must() {
    [ "$(ask_name "$@")" = OK ] || { say "failed: $*" && exit 1; }
}

replicas_follow() {
    echo "$plan" | while read -r primary replica; do
        id=$(ask_name "$primary" CLUSTER MYID) || exit 1
        [ "$(ask_name "$replica" CLUSTER REPLICATE "$id")" = OK ] || exit 1
    done
}

is_complete() (
    nodes=$(echo "$PEERS" | wc -w)
    for name in $PEERS; do
        ask_name "$name" CLUSTER INFO | tr -d '\r' | awk -F: -v nodes="$nodes" '
            { seen[$1] = $2 }
            END { exit !(seen["cluster_state"] == "ok" && seen["cluster_slots_ok"] == 16384 && seen["cluster_known_nodes"] == nodes) }' || exit 1
    done
)

main
