"""One Kafka round trip: a record is produced in one process, kept by all in-sync replicas, and consumed in another.

Two processes, and a pause between two records, because that is how a checkout meets Kafka: each hop wakes a process
that was asleep.  In one process and a tight loop the same takes about half as long.
"""

import asyncio
import multiprocessing
import struct
import time
import uuid
from multiprocessing.connection import Connection

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

PADDING = b"x" * 192
WARM_UP_COUNT = 50
PAUSE_S = 0.005
FETCH_WAIT_MS = 500
TIMEOUT_S = 60


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
        return await with_receiver(brokers, topic, WARM_UP_COUNT + count)
    finally:
        await admin.delete_topics([topic])
        await admin.close()


async def with_receiver(brokers: str, topic: str, count: int) -> list[float]:
    """Measure with a receiver that is connected and waits."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=receive, args=(brokers, topic, count, there))
    receiver.start()
    try:
        await asyncio.to_thread(here.recv)
        await send_all(brokers, topic, count)
        trips: list[float] = await asyncio.to_thread(here.recv)
        return trips[WARM_UP_COUNT:]
    finally:
        receiver.terminate()
        receiver.join()


async def send_all(brokers: str, topic: str, count: int) -> None:
    """Send `count` records that say when they were sent."""
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", linger_ms=0)
    await producer.start()
    try:
        for _ in range(count):
            await producer.send_and_wait(topic, struct.pack("q", time.perf_counter_ns()) + PADDING, partition=0)
            await asyncio.sleep(PAUSE_S)
    finally:
        await producer.stop()


def receive(brokers: str, topic: str, count: int, there: Connection) -> None:
    """Say that the receiver is ready, then how many milliseconds each record took."""
    asyncio.run(receive_all(brokers, topic, count, there))


async def receive_all(brokers: str, topic: str, count: int, there: Connection) -> None:
    """Receive `count` records; both processes read the same clock."""
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, fetch_max_wait_ms=FETCH_WAIT_MS)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        there.send("ready")
        records = [(await consumer.getone(), time.perf_counter_ns()) for _ in range(count)]
        there.send([(at - struct.unpack("q", record.value[:8])[0]) / 1e6 for record, at in records])
    finally:
        await consumer.stop()
