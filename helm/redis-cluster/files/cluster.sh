# shellcheck shell=sh
# What the other scripts share.  Read with `.`; the environment has
#
#   PEERS            the names of all nodes, this one's included: "order-redis-0.order-redis order-redis-1.order-redis ..."
#   SELF             this node's name among them
#   SELF_ADDRESS     where the others reach it now (create.sh needs neither)
#   REDISCLI_AUTH    the password of all nodes; redis-cli reads it
#   PORT             6379 unless set

PORT=${PORT:-6379}

say() { echo "$(basename "$0"): $*"; }

# The address of the node named $1, as DNS has it now.
address_of() { timeout 2 getent ahosts "$1" | awk '{ print $1; exit }'; }

# What the node at address $1 answers to the rest of the arguments; nothing if it does not answer.
ask() (
    [ -n "$1" ] || exit 1
    address=$1
    shift
    timeout 2 redis-cli -h "$address" -p "$PORT" "$@" 2>/dev/null
)

ask_name() (
    name=$1
    shift
    ask "$(address_of "$name")" "$@"
)

others() (
    for peer in $PEERS; do
        [ "$peer" = "$SELF" ] || echo "$peer"
    done
)

# The name that the node at address $1 has given itself.  An address may belong to somebody else by now: pods come and go.
name_at() { ask "$1" CLUSTER NODES | awk '$3 ~ /myself/ { split($2, part, ","); print part[2] }'; }

# Wait until the command in $2.. succeeds, $1 seconds at most.
wait_for() (
    deadline=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || exit 1
        sleep 0.2
    done
)
