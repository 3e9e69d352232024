"""The store: Redis Cluster, and nobody else here knows that.

Each partition is one hash: its entities by key, its header, and its position.  `apply` moves all of it in one fenced
script; the only other write, `restore`, puts a snapshot where there is no state, behind the same fence.  redis-py
repeats commands after a time-out: the fence makes that harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import NoScriptError

from common.config import Settings
from common.failures import Failures
from common.fold import Folded
from common.messages import Told, encode
from common.snapshot import Manifest
from common.tasks import spawn
from common.watchdog import note_repair

CALL_TIMEOUT_S = 1.0
REPLY_WAIT_S = 1.0
REPLY_LIFE_MS = 60_000
FAILURES_MAX = 5
REPLACE_S = 8.0
"""So many calls for one partition in a row, and for so long, nothing but failures: the client is replaced, and no
sooner again.  Longer than a failover, in which a new one knows no more, and may begin with the node that is frozen."""

FILL_FIELDS = 1_000
"""Fields that one script writes: longer ones would stop the node for too long."""
FILL_LIFE_MS = 60_000
"""How long a snapshot that is being restored outlives whoever restores it."""

_replies = msgspec.msgpack.Decoder(list[Told])


class StoreFailed(Exception):
    """The store cannot be reached, or did not answer in time.  What was asked may or may not have happened."""


class Fenced(Exception):
    """The partition's position is not what it would be if this process were its only owner."""

    def __init__(self, partition: str, expected: object, stored: int) -> None:
        super().__init__(f"{partition} stands at {stored}, expected {expected}")
        self.stored = stored


class _Script:
    """A Lua script beside this file; sent whole only to a node that does not know it."""

    def __init__(self, name: str) -> None:
        self._text = (Path(__file__).parent / name).read_text()
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, redis: RedisCluster, keys: list[str], arguments: list[Any]) -> Any:
        try:
            return await redis.evalsha(self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await redis.eval(self._text, len(keys), *keys, *arguments)


_apply, _fill, _restore = _Script("apply.lua"), _Script("fill.lua"), _Script("restore.lua")


class Store:
    """Reads and moves partitions; primaries only."""

    def __init__(self, settings: Settings, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._client = _Client(settings, timeout_s)

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return the partition's position (0: it has no state) and the fields, both as of the same moment."""
        with self._client.calling("read", partition) as redis:
            position, *values = await redis.execute_command("HMGET", _hash(partition), "position", *fields)
        return int(position or 0), values

    async def dump(self, partition: str) -> tuple[int, dict[str, bytes]]:
        """Return the partition's position (0: it has no state) and all its other fields, as of the same moment.

        For an audit, with a longer time-out: it stops the node for as long as it takes (187 ms for 300,000 fields).
        """
        with self._client.calling("dump", partition) as redis:
            stored = await redis.execute_command("HGETALL", _hash(partition))
        fields = {field.decode(): value for field, value in stored.items()}
        return int(fields.pop("position", 0)), fields

    async def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> None:
        """Move the partition from folded.start to folded.end, and push the replies; raise Fenced when it is elsewhere.

        An apply whose answer was lost and that is repeated finds the partition at its own end: that is success.
        """
        replies = folded.replies if with_replies else {}
        keys = [_hash(partition), *(_replies_to(partition, web_id) for web_id in replies)]
        arguments = [*_arguments(folded), *(encode(told) for told in replies.values())]
        with self._client.calling("apply", partition) as redis:
            stored = int(await _apply(redis, keys, arguments))
        if stored != folded.end:
            raise Fenced(partition, folded.start, stored)

    async def restore(
        self, partition: str, expected: int, manifest: Manifest, chunks: AsyncIterator[dict[str, bytes]]
    ) -> None:
        """Put a snapshot in place of a partition that stands at `expected`; raise Fenced when it is elsewhere.

        It is written under a temporary name and renamed when all of it is there: nobody ever reads a part of it.
        """
        temporary = f"{_hash(partition)}:restore:{uuid4().hex}"
        await self._fill(partition, temporary, {"header": manifest.header, "position": b"%d" % manifest.position})
        async for fields in chunks:
            await self._fill(partition, temporary, fields)
        arguments = [expected, manifest.position, manifest.field_count + 2]
        with self._client.calling("restore", partition) as redis:
            stored = int(await _restore(redis, [_hash(partition), temporary], arguments))
        if stored != manifest.position:
            raise Fenced(partition, expected, stored)

    async def _fill(self, partition: str, temporary: str, fields: dict[str, bytes]) -> None:
        pairs = list(fields.items())
        for start in range(0, len(pairs), FILL_FIELDS):
            flat = [part for pair in pairs[start : start + FILL_FIELDS] for part in pair]
            with self._client.calling("fill", partition) as redis:
                await _fill(redis, [temporary], [FILL_LIFE_MS, *flat])

    async def memory_share(self, partition: str) -> float:
        """Return how much of its memory the partition's node uses, 0 to 1; 0 where there is no limit."""
        with self._client.calling("memory", partition) as redis:
            node = redis.get_node_from_key(_hash(partition))
            if node is None:
                return 0.0
            memory = await redis.execute_command("INFO", "memory", target_nodes=node)
        return float(memory["used_memory"] / memory["maxmemory"]) if memory["maxmemory"] else 0.0

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()


class Replies:
    """A web process's end of the reply lists, one list a partition; waits longer than other calls may take."""

    def __init__(self, settings: Settings, web_id: str) -> None:
        self._client = _Client(settings, REPLY_WAIT_S + 2 * CALL_TIMEOUT_S)
        self._web_id = web_id

    async def take(self, partition: str) -> list[Told]:
        """Return what one apply pushed; wait a while when there is nothing, then return an empty list.

        Not BLMPOP: to find its keys, redis-py asks the server (COMMAND GETKEYS) before every call.
        """
        with self._client.calling("replies", partition) as redis:
            taken = await redis.execute_command("BLPOP", _replies_to(partition, self._web_id), REPLY_WAIT_S)
        return _replies.decode(taken[1]) if taken else []

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()


class _Client:
    """A client of the cluster.  One that only fails is replaced: what it knows may be what is wrong.

    That may be so for one partition alone.  Calls for others, under way in the client that is replaced, end there; then
    it is closed.
    """

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._redis = _connect(settings, timeout_s)
        self._calls: Counter[RedisCluster] = Counter()
        self._failures = Failures(FAILURES_MAX, REPLACE_S)

    @contextlib.contextmanager
    def calling(self, doing: str, partition: str) -> Iterator[RedisCluster]:
        """Around one call of the library's, and nothing else.

        Any exception: besides its own, redis-py 8.1 lets AttributeError and uvloop's RuntimeError out when another
        task's failure closes a connection that this call is about to use.
        """
        redis = self._redis
        self._calls[redis] += 1
        try:
            yield redis
        except Exception as why:
            failed = StoreFailed(f"{doing} {partition}: {why!r}")
            self._note_failure(partition, failed)
            raise failed from why
        else:
            self._failures.end(partition)
        finally:
            self._leave(redis)

    async def close(self) -> None:
        """Disconnect."""
        await _close(self._redis)

    def _note_failure(self, partition: str, why: StoreFailed) -> None:
        if self._failures.add(partition):
            self._failures.clear()
            self._redis = _connect(self._settings, self._timeout_s)
            note_repair("store client", str(why))

    def _leave(self, redis: RedisCluster) -> None:
        """Note the end of a call; the last one in a client that was replaced closes it."""
        self._calls[redis] -= 1
        if not self._calls[redis]:
            del self._calls[redis]
            if redis is not self._redis:
                spawn(_close(redis))


async def _close(redis: RedisCluster) -> None:
    """Close all connections.  Its own `aclose` leaves them to one whose last call has failed (redis-py 8.1)."""
    with contextlib.suppress(Exception):
        await redis.aclose()
    for nodes in ("nodes_cache", "startup_nodes"):
        with contextlib.suppress(Exception):
            await redis.nodes_manager.aclose(nodes)


def _connect(settings: Settings, timeout_s: float) -> RedisCluster:
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in settings.redis_nodes],
        password=settings.redis_password or None,
        require_full_coverage=False,
        dynamic_startup_nodes=False,  # all nodes may have new addresses: ask by the names that we were given
        reinitialize_steps=0,  # after MOVED, patch the slot: anything else asks the old node 16 times over
        retry=Retry(ConstantBackoff(0.05), 1),
        socket_timeout=timeout_s,
        socket_connect_timeout=CALL_TIMEOUT_S,
        protocol=2,
    )


def _hash(partition: str) -> str:
    return f"{{{partition}}}"


def _replies_to(partition: str, web_id: str) -> str:
    """In the slot of the partition's hash, so that one script can write both."""
    return f"{{{partition}}}:replies:{web_id}"


def _arguments(folded: Folded) -> list[Any]:
    sets: list[Any] = []
    deletes: list[str] = []
    for field, value in folded.changes.items():
        if value is None:
            deletes.append(field)
        else:
            sets += (field, value)
    return [folded.start, folded.end, REPLY_LIFE_MS, len(sets) // 2, len(deletes), *sets, *deletes]
