"""A connection of redis-py that notes what it is asked, and what stands for its pool in a lease."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

from redis import exceptions
from redis.asyncio import ConnectionPool

_PLAIN = """
    APPEND BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP
    BZPOPMAX BZPOPMIN COPY DBSIZE DECR DECRBY DEL DUMP ECHO EXISTS EXPIRE EXPIREAT EXPIRETIME
    FLUSHALL FLUSHDB GEOADD GEODIST GEOHASH GEOPOS GEOSEARCH GEOSEARCHSTORE GET GETBIT GETDEL GETEX
    GETRANGE GETSET HDEL HEXISTS HEXPIRE HGET HGETALL HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET
    HPERSIST HRANDFIELD HSCAN HSET HSETNX HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT INFO KEYS LCS
    LINDEX LINSERT LLEN LMOVE LMPOP LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MGET MSET MSETNX
    PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PFCOUNT PFMERGE PING PSETEX PTTL PUBLISH PUBSUB
    RANDOMKEY RENAME RENAMENX RESTORE RPOP RPOPLPUSH RPUSH RPUSHX SADD SCAN SCARD SDIFF SDIFFSTORE
    SET SETBIT SETEX SETNX SETRANGE SINTER SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER
    SMOVE SORT SORT_RO SPOP SPUBLISH SRANDMEMBER SREM SSCAN STRLEN SUBSTR SUNION SUNIONSTORE TIME
    TOUCH TTL TYPE UNLINK XACK XADD XAUTOCLAIM XCLAIM XDEL XGROUP XINFO XLEN XPENDING XRANGE XREAD
    XREADGROUP XREVRANGE XTRIM ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD
    ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE
    ZRANGESTORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION ZUNIONSTORE
"""
_UNDONE = """
    ASKING AUTH CLUSTER COMMAND CONFIG DISCARD EVAL EVALSHA EVALSHA_RO EVAL_RO EXEC FCALL FCALL_RO
    FUNCTION HELLO MEMORY MONITOR MULTI OBJECT PSUBSCRIBE PUNSUBSCRIBE READONLY READWRITE ROLE
    SCRIPT SELECT SLOWLOG SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE UNWATCH WAIT WATCH
"""
_CLIENT = """
    CACHING GETNAME GETREDIR ID INFO KILL LIST REPLY SETINFO SETNAME TRACKING TRACKINGINFO
"""
#: Commands that leave nothing on the session.
PLAIN: Final = frozenset(_PLAIN.split())

#: Commands that leave nothing but what RESET undoes. What is in neither list costs the connection.
UNDONE: Final = frozenset(_UNDONE.split())
#: Subcommands of CLIENT that RESET undoes. It does not undo NO-EVICT and NO-TOUCH, for example.
CLIENT: Final = frozenset(_CLIENT.split())

#: Modules that come with Redis, whose commands leave nothing on the session.
MODULES: Final = frozenset(["BF", "CF", "CMS", "FT", "JSON", "TDIGEST", "TOPK", "TS"])


class Link:
    """A part of a class of connections of redis-py: see `link_class`."""

    was_connected = False
    unanswered = 0
    is_plain = True
    can_be_reset = True

    def begin(self) -> None:
        """Begin a lease: nothing is owed, and nothing noted."""
        self.unanswered, self.is_plain, self.can_be_reset = 0, True, True

    async def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect, the first time; redis-py would connect again by itself."""
        self._refuse_another()
        await super().connect(*args, **kwargs)  # type: ignore[misc]
        self.was_connected = True

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Connect, as later versions of redis-py call it."""
        self._refuse_another()
        await super().connect_check_health(*args, **kwargs)  # type: ignore[misc]

    def _refuse_another(self) -> None:
        if self.was_connected:
            raise exceptions.ConnectionError("the connection of this lease was lost")

    async def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command, and note it."""
        self._note(args)
        await super().send_command(*args, **kwargs)  # type: ignore[misc]

    def pack_commands(self, commands: Any) -> Any:
        """Pack the commands of a pipeline, and note them."""
        commands = list(commands)
        ends = [_text(command[0]).upper() for command in commands[:: max(1, len(commands) - 1)]]
        # A transaction that is sent in one piece is over when its answers have come.
        is_whole = ends == ["MULTI", "EXEC"]
        self.unanswered += 2 * is_whole
        for command in commands[1:-1] if is_whole else commands:
            self._note(command)
        return super().pack_commands(commands)  # type: ignore[misc]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read an answer, which may be an error."""
        try:
            answer = await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except exceptions.ResponseError:
            self.unanswered -= 1
            raise
        self.unanswered -= 1
        return answer

    def _note(self, command: Any) -> None:
        self.unanswered += 1
        if type(command[0]) is str and command[0] in PLAIN:  # as redis-py's own methods write it
            return
        words = [_text(word).upper() for word in command[:2]]
        words = words[0].split() + words[1:]  # redis-py writes some as "CLIENT TRACKING"
        if words[0] not in PLAIN:
            self.is_plain = False
            is_client = words[0] == "CLIENT" and len(words) > 1 and words[1] in CLIENT
            is_module = words[0].partition(".")[0] in MODULES and "." in words[0]
            self.can_be_reset &= words[0] in UNDONE or is_client or is_module


def twin(of: Any) -> Any:
    """Return a shallow copy, in a third of the time of `copy.copy`."""
    made = object.__new__(type(of))
    made.__dict__ = {**of.__dict__}
    return made


def _text(word: Any) -> str:
    return word.decode("latin-1") if isinstance(word, bytes) else str(word)


@functools.lru_cache(maxsize=256)
def link_class(kind: type) -> type[Any]:
    """Return the class of connections that is a `Link`, of one of redis-py's."""
    return type("Link", (Link, kind), {})


class Held:
    """The connection, as what is made from a client has it: dead when the lease is over."""

    def __init__(self, pool: LeasePool) -> None:
        vars(self)["_pool"] = pool

    def __getattr__(self, name: str) -> Any:
        if name == "_close":  # by what is collected, which ends nobody's connection
            return int
        self._pool.check()
        return getattr(self._pool.link, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._pool.check()
        setattr(self._pool.link, name, value)


class LeasePool(ConnectionPool):  # type: ignore[misc]
    """The connection of one lease, in the shape of a pool, for what redis-py makes from a client.

    Pipelines and subscriptions take the connection from it, and give it back. One that has not
    when the lease ends has the connection terminated.
    """

    link: Any
    _held: Any
    _is_over: bool
    _taker: Any
    _taking: asyncio.Lock

    def begin(self, link: Any) -> LeasePool:
        """Return another one, for the next lease."""
        other: LeasePool = twin(self)
        other.link, other._is_over = link, False
        other._taking, other._taker = asyncio.Lock(), None
        other._held = Held(other)
        return other

    def end(self) -> bool:
        """End the lease; return whether the connection was given back."""
        self._is_over = True
        return not self._taking.locked()

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return the connection, when no other task uses it."""
        self.check()
        if self._taking.locked() and self._taker is asyncio.current_task():
            raise exceptions.ConnectionError(
                "the connection of this lease is in use by a pipeline that watches, or by a "
                "subscription, of this task: end it first, or acquire another connection"
            )
        await self._taking.acquire()
        try:
            self.check()
        except BaseException:
            self._taking.release()
            raise
        self._taker = asyncio.current_task()
        return self._held

    def check(self) -> None:
        """Raise redis-py's `ConnectionError` if the lease is over."""
        if self._is_over:
            raise exceptions.ConnectionError("the connection was given back to the pool")

    async def release(self, connection: Any) -> None:
        """Take the connection back."""
        if connection is self._held and self._taking.locked():
            self._taker = None
            self._taking.release()

    async def disconnect(self, *_: Any, **__: Any) -> None:
        """End the connection."""
        self.check()
        await self.link.disconnect()

    aclose = disconnect
