#!/bin/sh
# Before a node stops: a primary has its replica take over, so that nobody has to notice its absence first.
# Nothing is lost if this does not work: it is then what a crash is.

set -eu
. "$(dirname "$0")/cluster.sh"

# The first for a replica that has to catch up, the second for one that takes over.
SYNCHRONIZED_TIMEOUT_S=5
TAKEN_OVER_TIMEOUT_S=3

begins_to_take_over() { [ "$(ask "$replica" CLUSTER FAILOVER)" = OK ]; }

is_replica() { [ "$(ask "$SELF_ADDRESS" ROLE | head -n 1)" = slave ]; }

replica=$(ask "$SELF_ADDRESS" CLUSTER NODES | awk '
    $3 ~ /myself,master/ && NF > 8 { mine = $1 }
    $3 ~ /slave/ && $3 !~ /fail|noaddr/ && $8 == "connected" { sub(/:[0-9]+@.*/, "", $2); address[$1] = $2; follows[$1] = $4 }
    END { for (id in address) if (follows[id] == mine) { print address[id]; exit } }')
if [ -n "$replica" ]; then
    if wait_for "$SYNCHRONIZED_TIMEOUT_S" begins_to_take_over && wait_for "$TAKEN_OVER_TIMEOUT_S" is_replica; then
        say "handed over to $replica"
    else
        say "$replica does not take over"
    fi
fi
