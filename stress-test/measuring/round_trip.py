"""One Kafka round trip: a record is produced, kept by all in-sync replicas, and consumed."""

import asyncio
import time
import uuid

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

VALUE = b"x" * 200
WARM_UP_COUNT = 50
FETCH_WAIT_MS = 500
TIMEOUT_S = 30


def round_trips_ms(brokers: str, replication: int, count: int) -> list[float]:
    """Return how long `count` records took, one at a time, from send to receipt."""
    return asyncio.run(asyncio.wait_for(with_topic(brokers, replication, count), TIMEOUT_S))


async def with_topic(brokers: str, replication: int, count: int) -> list[float]:
    """Measure on a topic that exists only meanwhile."""
    topic = f"bench-{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, replication)])
        return await with_clients(brokers, topic, count)
    finally:
        await admin.delete_topics([topic])
        await admin.close()


async def with_clients(brokers: str, topic: str, count: int) -> list[float]:
    """Measure with a producer and a consumer that are connected and warm."""
    partition = TopicPartition(topic, 0)
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", linger_ms=0)
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, fetch_max_wait_ms=FETCH_WAIT_MS)
    await producer.start()
    try:
        await consumer.start()
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        trips = [await round_trip_ms(producer, consumer, partition) for _ in range(WARM_UP_COUNT + count)]
        return trips[WARM_UP_COUNT:]
    finally:
        await consumer.stop()
        await producer.stop()


async def round_trip_ms(producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, partition: TopicPartition) -> float:
    """Return the time from the send of one record to its receipt."""
    start = time.perf_counter()
    acknowledged = await producer.send(partition.topic, VALUE, partition=partition.partition)
    await consumer.getone()
    elapsed_s = time.perf_counter() - start
    await acknowledged
    return elapsed_s * 1000
