#!/bin/sh
# Before a node stops: a primary has its replica take over, so that nobody has to notice its absence first.
# Nothing is lost if this does not work: it is then what a crash is.

set -eu
. "$(dirname "$0")/cluster.sh"

HAND_OVER_TIMEOUT_S=5

is_replica() { [ "$(ask "$SELF_ADDRESS" ROLE | head -n 1)" = slave ]; }

replica=$(ask "$SELF_ADDRESS" CLUSTER NODES | awk '
    $3 ~ /myself,master/ && NF > 8 { mine = $1 }
    $3 ~ /slave/ && $3 !~ /fail|noaddr/ && $8 == "connected" { sub(/:[0-9]+@.*/, "", $2); address[$1] = $2; follows[$1] = $4 }
    END { for (id in address) if (follows[id] == mine) { print address[id]; exit } }')
if [ -n "$replica" ]; then
    say "handing over to $replica: $(ask "$replica" CLUSTER FAILOVER)"
    wait_for "$HAND_OVER_TIMEOUT_S" is_replica || say "not taken over"
fi
