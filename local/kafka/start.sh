#!/bin/sh
# Becomes one broker, so that the process which is supervised is the JVM itself.
# A folder that is new or was emptied is formatted first.
#
#     start.sh <server.properties> <folder> <cluster id>
#
# Runs in the repository: class paths are relative, so that the archive of parsed classes
# (java's class data sharing: half the start time, and shared by all brokers) fits any clone.
set -eu
properties=$1 folder=$2 cluster_id=$3

CLASSPATH=$(LC_ALL=C; printf '%s:' .cache/kafka-jars/*.jar)
export CLASSPATH
export MALLOC_ARENA_MAX=2
archive=.cache/kafka-jars/classes.jsa
if [ -n "${ARCHIVE_CLASSES:-}" ]; then
    sharing=-XX:ArchiveClassesAtExit=$archive
else
    sharing=-XX:SharedArchiveFile=$archive
fi
logging=-Dlog4j2.configurationFile=local/kafka/log4j2.properties

if [ ! -f "$folder/meta.properties" ]; then
    java -XX:SharedArchiveFile=$archive -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "$logging" \
        kafka.tools.StorageTool format --cluster-id "$cluster_id" --config "$properties"
fi
# Only the first of the JVM's compilers: brokers here live for minutes, and the second one's work never pays.
exec java "$sharing" -XX:TieredStopAtLevel=1 -Xms64m -Xmx256m -XX:+UseSerialGC -Xss512k \
    -XX:ReservedCodeCacheSize=64m -XX:-UsePerfData -XX:+ExitOnOutOfMemoryError "$logging" kafka.Kafka "$properties"
