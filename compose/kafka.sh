#!/bin/bash
# One broker of the profile's, which is also a controller: kafka.sh NODE, in the image of Apache Kafka.
# There are three where the one-shot service `three-brokers` ran (--profile ha), and one otherwise.

set -euo pipefail

node=$1
data=/var/lib/kafka/data
settings=/tmp/server.properties
copies=1 in_sync_min=1 voters=1@kafka-1:9093
if [ -e /cluster/three-brokers ]; then
    copies=3 in_sync_min=2 voters=1@kafka-1:9093,2@kafka-2:9093,3@kafka-3:9093
fi

{
    cat /etc/checkout/kafka.properties
    echo "node.id=$node"
    echo "controller.quorum.voters=$voters"
    echo "advertised.listeners=PLAINTEXT://kafka-$node:9092"
    echo "default.replication.factor=$copies"
    echo "offsets.topic.replication.factor=$copies"
    echo "transaction.state.log.replication.factor=$copies"
    echo "share.coordinator.state.topic.replication.factor=$copies"
    echo "min.insync.replicas=$in_sync_min"
    echo "transaction.state.log.min.isr=$in_sync_min"
    echo "share.coordinator.state.topic.min.isr=$in_sync_min"
} >"$settings"

# Always the same id: a broker whose volume was emptied joins its old cluster.
[ -e "$data/meta.properties" ] || /opt/kafka/bin/kafka-storage.sh format -t Y2hlY2tvdXQtY29tcG9zZQ -c "$settings"
exec /opt/kafka/bin/kafka-server-start.sh "$settings"
