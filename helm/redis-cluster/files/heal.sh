#!/bin/sh
# Runs beside each node, for ever, and does what Redis leaves to a person:
#
# * Nodes that all came back with new addresses at once never find each other again.  Whoever is lost is looked up by
#   name, asked whether it is the one, and met (CLUSTER MEET).
# * A node whose place was taken under a new id leaves a dead entry with its name behind: it is forgotten.
# * A primary without slots among primaries with slots is of no use: it becomes a replica.
# * A replica that heard of its primary's new address from others keeps asking the old one, for ever: it is told to follow
#   the same primary once more.
# * Primaries that failovers have gathered on one machine would be lost together, and less than half could not replace them: a
#   replica elsewhere takes over from one of them.
#
# It looks once a second, every 3 s while all is whole, and never trusts a single look: what Redis says in the first 2 s after
# a start is not so.

set -eu
trap "exit 1" TERM # the first process of a container does not end of it by itself
. "$(dirname "$0")/cluster.sh"

USELESS_LOOKS_MAX=8
SPREAD_LOOKS=${SPREAD_LOOKS:-10}
useless_looks=0
whole_looks=0

main() {
    while :; do
        seen=$(look | tr -d '\r')
        if is_whole; then
            useless_looks=0
            if [ "$((whole_looks += 1))" -ge "$SPREAD_LOOKS" ]; then
                whole_looks=0
                take_over_if_gathered
            fi
            sleep 3
        else
            whole_looks=0
            nodes=$(printf '%s\n' "$seen" | awk 'NF >= 8')
            if is_member; then
                meet_lost
                forget_ghosts
                follow_somebody
                follow_to_new_address
            fi
            sleep 1
        fi
    done
}

# Lines of CLUSTER NODES, of eight words or more, and lines of INFO, of less.
look() {
    printf 'CLUSTER NODES\nINFO replication\n' | timeout 2 redis-cli -h "$SELF_ADDRESS" -p "$PORT" 2>/dev/null || true
}

ask_self() { ask "$SELF_ADDRESS" "$@"; }

# As nearly always: everybody is there, linked and once, and this node has a part in it.  One process, not twenty: all the
# nodes of a small machine look once a second.
is_whole() {
    printf '%s\n' "$seen" | awk -v peers="$PEERS" '
        NF >= 8 { known++; split($2, part, ",") }
        NF >= 8 && $8 == "connected" && $3 !~ /fail|noaddr|handshake/ { linked[part[2]] = 1 }
        $3 ~ /myself,master/ && NF == 8 { useless = 1 }
        $1 == "master_link_status:down" { cut = 1 }
        END {
            count = split(peers, name, " ")
            for (i = 1; i <= count; i++) missing += !linked[name[i]]
            exit missing || useless || cut || known != count
        }'
}

# A node that knows nobody and serves nothing waits for the cluster's creation, or to be met.
is_member() { printf '%s\n' "$nodes" | awk '$3 ~ /myself/ && NF > 8 { yes = 1 } $3 !~ /myself/ && NF { yes = 1 } END { exit !yes }'; }

meet_lost() {
    for name in $(others); do
        if ! is_linked "$name"; then
            address=$(address_of "$name")
            if [ -n "$address" ] && [ "$(name_at "$address")" = "$name" ]; then
                say "meeting $name at $address: $(ask_self CLUSTER MEET "$address" "$PORT")"
            fi
        fi
    done
}

is_linked() {
    printf '%s\n' "$nodes" | awk -v name="$1" '
        { split($2, part, ",") }
        part[2] == name && $8 == "connected" && $3 !~ /fail|noaddr|handshake/ { yes = 1 }
        END { exit !yes }'
}

# Who never spoke to it knows it without a name.  One that is forgotten too early is met again.
forget_ghosts() {
    for id in $(printf '%s\n' "$nodes" | awk '
        { split($2, part, ","); name[$1] = part[2] }
        $8 == "connected" && $3 !~ /fail|noaddr|handshake/ { alive[part[2]] = 1 }
        $3 ~ /fail($|,)|noaddr/ && NF == 8 { dead[$1] = 1 }
        END { for (id in dead) if (name[id] == "" || alive[name[id]]) print id }'); do
        say "forgetting $id: $(ask_self CLUSTER FORGET "$id")"
    done
}

follow_somebody() {
    primary=$(printf '%s\n' "$nodes" | awk '
        $3 ~ /myself,master/ && NF == 8 { useless = 1 }
        $3 ~ /slave/ && $3 !~ /fail/ { replicas[$4]++ }
        $3 ~ /master/ && $3 !~ /myself|fail/ && NF > 8 { primaries[++count] = $1 }
        END {
            for (i = 1; i <= count; i++)
                if (chosen == "" || replicas[primaries[i]] < replicas[chosen]) chosen = primaries[i]
            if (useless) print chosen
        }')
    if [ -z "$primary" ]; then
        useless_looks=0
    elif [ "$((useless_looks += 1))" -ge "$USELESS_LOOKS_MAX" ]; then
        say "following $primary: $(ask_self CLUSTER REPLICATE "$primary")"
        useless_looks=0
    fi
}

follow_to_new_address() {
    primary=$(printf '%s\n' "$seen" | awk '
        NF >= 8 && $3 ~ /myself,slave/ { primary = $4 }
        NF >= 8 && $3 !~ /fail|noaddr|handshake/ { split($2, part, ":"); address[$1] = part[1] }
        /^master_host:/ { asked = substr($1, 13) }
        $1 == "master_link_status:down" { cut = 1 }
        END { if (cut && address[primary] != "" && asked != address[primary]) print primary }')
    [ -z "$primary" ] || say "following $primary to its new address: $(ask_self CLUSTER REPLICATE "$primary")"
}

take_over_if_gathered() {
    printf '%s\n' "$seen" | grep -q myself,slave || return 0
    places=$(for name in $PEERS; do echo "place $name $(ask_name "$name" CONFIG GET syslog-ident | tail -n 1)"; done)
    if printf '%s\n' "$places" "$seen" | awk '
        $1 == "place" { place[$2] = $3 }
        NF >= 8 { split($2, part, ","); at[$1] = place[part[2]] }
        NF > 8 && $3 ~ /master/ { count[at[$1]]++ }
        NF >= 8 && $3 ~ /myself,slave/ { here = at[$1]; primary = $4 }
        END { there = at[primary]; exit !(here != "" && there != "" && count[here] + 1 < count[there]) }'; then
        say "taking over, too many primaries are on one machine: $(ask_self CLUSTER FAILOVER)"
    fi
}

main
