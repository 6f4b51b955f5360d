"""The rows of the table: what is measured, against which reference, and how much is wanted."""

import dataclasses
import functools
import json
import time

from load import Sample, Target, pgbench, redis_benchmark, sweep, wrk
from processes import KEY, Failed, http_get, memory_mib
from regions import SHORTEST_TRIP_MS, over_wan
from servers import FIRST_WIDE_KEY
from tools import say

CONNECTIONS = 64
# Writes that wait when level 6 begins to apply them.
BACKLOG = 1_000_000


@dataclasses.dataclass
class Row:
    """`figure` of Terrace against the best of `references`; `wanted` None only informs."""

    title: str
    figure: str
    references: tuple
    wanted: float | None
    lower_p99: bool = False


@dataclasses.dataclass
class Group:
    """Rows whose measurements are interleaved; `targets` maps a name to a maker of its Target."""

    targets: dict
    rows: list
    # (title, unit, at most, a function that tells the figure after the measurements)
    limits: tuple = ()


class Rows:
    """Makes the targets; nothing is started before a row needs it."""

    def __init__(self, field, options):
        self.field, self.threads, self.keys = field, options.threads, options.keys
        # Enough keys for every warm-up and round, were each miss as fast as this.
        self.wide_keys = 130_000 * (options.seconds * options.rounds + options.warm_up)

    def groups(self):
        return [
            self.l0(),
            self.l1_read(),
            self.l1_write(),
            self.l2_hit(),
            self.l2_miss(),
            self.l3_read(),
            self.l4_read(),
            self.l5(),
            self.l6_accept(),
            self.l6_drain(),
            self.l7(),
            self.l8_documents(),
            self.l8_ledger(),
            self.l9(),
            self.l10(),
            self.embedded("read"),
            self.embedded("write"),
        ]

    def l0(self):
        # Eight at a time on both sides: each request holds a backend of its own.
        return Group(
            {
                "L0 read": lambda: self.read(0, connections=8),
                "pgbench -C": lambda: self.pgbench("select.sql", 8, connect_each=True),
            },
            [Row("L0 read, a connection each", "L0 read", ("pgbench -C",), 1.2)],
        )

    def l1_read(self):
        references = {
            f"pgbench select, {clients}": lambda clients=clients: self.pgbench(
                "select.sql", clients
            )
            for clients in (8, 32)
        }
        return Group(
            {"L1 read": lambda: self.read(1), **references},
            [Row("L1 read, 64 connections", "L1 read", tuple(references), 1.2)],
        )

    def l1_write(self):
        reference = "pgbench upsert, 64"
        return Group(
            {
                "L1 write, 64": lambda: self.write(1),
                "L1 write, 256": lambda: self.write(1, connections=256),
                reference: lambda: self.pgbench("upsert.sql", 64, writes=True),
            },
            [
                Row("L1 write, 64 connections", "L1 write, 64", (reference,), 1.6),
                Row("L1 write, 256 connections", "L1 write, 256", (reference,), 2.2),
            ],
        )

    def l2_hit(self):
        return Group(
            {
                "L2 hit": lambda: self.hit(2, "hits", "misses"),
                "webdis": self.webdis,
                "redis-benchmark": self.redis_benchmark,
            },
            [
                Row("L2 hit", "L2 hit", ("webdis",), 1.0),
                Row("L2 hit, beside bare Redis", "L2 hit", ("redis-benchmark",), None),
            ],
        )

    def l2_miss(self):
        # Both levels walk the same table in order, each key once: a miss is a miss, the cache
        # fills as it does in life, and nothing is cleared or expired to force one.
        return Group(
            {"L2 miss": lambda: self.walk(2), "L1 read, same keys": lambda: self.walk(1)},
            [Row("L2 miss", "L2 miss", ("L1 read, same keys",), 0.5)],
        )

    def l3_read(self):
        # Primary, two standbys and the reference's server share this machine: what is measured is
        # what choosing a replica and asking for its place in the log costs, not what it gains.
        return Group(
            {
                "L3 read": lambda: self.read(3, stores="local", flags=("--no-cache",)),
                "L1 read": lambda: self.read(1),
            },
            [Row("L3 read, cache off", "L3 read", ("L1 read",), 0.9)],
        )

    def l4_read(self):
        return Group(
            {
                "L4 read": lambda: self.read(4, flags=("--no-cache",)),
                "L1 read": lambda: self.read(1),
            },
            [Row("L4 read, cache off", "L4 read", ("L1 read",), 0.9)],
        )

    def l5(self):
        return Group(
            {
                "L5 near hit": lambda: self.hit(5, "l1_cache_hits", "l1_cache_misses"),
                "axum hello": self.hello,
                "nginx proxy_cache": self.nginx,
            },
            [
                Row("L5 near hit, beside axum hello", "L5 near hit", ("axum hello",), 0.9),
                Row("L5 near hit, beside nginx", "L5 near hit", ("nginx proxy_cache",), 1.4),
            ],
        )

    def l6_accept(self):
        return Group(
            {
                "L6 accept, 256": lambda: self.accept(connections=256),
                "L6 accept, 256, apart": lambda: self.accept_apart(connections=256),
                "L1 write, 256": lambda: self.write(1, connections=256),
            },
            [
                Row(
                    "L6 accept, 256 connections, journaled",
                    "L6 accept, 256",
                    ("L1 write, 256",),
                    0.9,
                ),
                # What a journal takes when something else has the cores that apply it.
                Row(
                    "L6 accept, flusher elsewhere",
                    "L6 accept, 256, apart",
                    ("L1 write, 256",),
                    1.3,
                    lower_p99=True,
                ),
            ],
        )

    def l6_drain(self):
        same, new = [], []
        wide = range(FIRST_WIDE_KEY, FIRST_WIDE_KEY + BACKLOG)
        reference = "L1 write, 256"
        return Group(
            {
                "L6 drain": lambda: self.drain(self.field.key_range(), same),
                "L6 drain, new keys": lambda: self.drain(wide, new),
                reference: lambda: self.write(1, connections=256),
            },
            [
                Row(f"L6 drain of {BACKLOG:,}", "L6 drain", (reference,), 1.0),
                # Nothing supersedes anything: every write is a row, and every row a key in memory.
                Row(f"L6 drain of {BACKLOG:,} new keys", "L6 drain, new keys", (reference,), 1.0),
            ],
            limits=(("L6 drain, memory of Terrace", "MiB", 200, lambda: max(same + new)),),
        )

    def l7(self):
        return Group(
            {
                "L7 command": lambda: self.write(7),
                "L7 projection": self.projection,
                "L1 write": lambda: self.write(1),
            },
            [
                Row("L7 command", "L7 command", ("L1 write",), 0.5),
                # As fast as commands come, or the log grows.
                Row("L7 projection, beside the commands of its run", "L7 projection",
                    ("L7 command",), 0.95),
            ],
        )

    def l8_documents(self):
        # Before the ledger's rows: what they leave to the summaries would be worked off beside these.
        return Group(
            {
                "L8 document hit": self.document_hit,
                "L2 hit": lambda: self.hit(2, "hits", "misses"),
            },
            [Row("L8 document read, far hit", "L8 document hit", ("L2 hit",), 0.9)],
        )

    def l8_ledger(self):
        return Group(
            {
                "L8 ledger write": self.post,
                "L1 write": lambda: self.write(1, stores="local"),
            },
            [Row("L8 ledger write", "L8 ledger write", ("L1 write",), 0.8)],
        )

    def l9(self):
        # Three regions on this machine: what others apply of a write is applied on the same cores, and
        # so a region is measured by itself, as it is where each has a machine of its own.
        wan = functools.cache(lambda: over_wan(self.field, self.threads, self.keys))
        return Group(
            {
                "L9 write": lambda: self.put(9, {"REPLICATION_ENABLED": "false"}),
                "L9 write, all regions": lambda: self.put(9),
                "L1 write": lambda: self.put(1),
            },
            [
                Row("L9 local write", "L9 write", ("L1 write",), 0.8),
                Row("L9 write, applied on these cores by two more regions",
                    "L9 write, all regions", ("L1 write",), None),
            ],
            limits=(
                ("L9 --wan, p99 of a write", "ms", SHORTEST_TRIP_MS - 1, lambda: wan().write_p99_ms),
                ("L9 --wan, p99 of replication past its round trip", "ms", 50, lambda: wan().lag_p99_ms),
            ),
        )

    def l10(self):
        return Group(
            {
                "L10 near hit": self.guarded_hit,
                "L5 near hit": lambda: self.hit(5, "l1_cache_hits", "l1_cache_misses"),
                "nginx proxy_cache": self.nginx,
            },
            [
                Row("L10 near hit, all guards on", "L10 near hit", ("L5 near hit",), 0.85),
                Row("L10 near hit, beside nginx", "L10 near hit", ("nginx proxy_cache",), 1.0),
            ],
        )

    def guarded_hit(self):
        """Reads with a key, of keys that are all in the near cache."""
        server = self.field.terrace(10)
        self.field.once("cached keys of l10", lambda: self.field.read_all(server["port"]))
        url = server["url"]
        run = wrk(url, CONNECTIONS, self.threads, "read.lua", "/read/", self.keys, headers=KEY)

        def run_and_check(seconds):
            sample = run(seconds)
            answer = json.loads(http_get(f"{url}/read/{self.field.key_range().start}")[1])
            if answer["cache_level"] != "L1":
                raise Failed(f"a read was no near hit: {answer}")
            return sample

        return Target(run_and_check, server["pids"])

    def put(self, level, settings=None):
        """Writes by `PUT /v1/records/{key}`, which waits for no other region."""
        name = f"l{level}_servers" + ("_apart" if settings else "")
        server = self.field.terrace(level, name=name, settings=settings)
        run = self.wrk(server, CONNECTIONS, "put.lua", self.keys)
        return Target(run, server["pids"], self.field.wal_syncs)

    def document_hit(self):
        """Reads of documents that are all in the cache."""
        server = self.field.documents()
        run = self.wrk(server, CONNECTIONS, "read.lua", "/read/document/", self.keys)
        return Target(run, server["pids"])

    def post(self):
        server = self.field.documents()
        return Target(self.wrk(server, CONNECTIONS, "post.lua", self.keys), server["pids"])

    def projection(self):
        """Events projected a second while commands come as fast as they can; the lag is told."""
        server = self.field.terrace(7)
        run = self.wrk(server, CONNECTIONS, "write.lua", self.keys)
        return Target(projected(run, server), server["pids"])

    def embedded(self, what):
        make = self.read if what == "read" else self.write
        return Group(
            {
                f"embedded L1 {what}": lambda: make(1, stores="embedded"),
                f"L1 {what}": lambda: make(1),
            },
            [
                Row(
                    f"embedded L1 {what}",
                    f"embedded L1 {what}",
                    (f"L1 {what}",),
                    1.0 if what == "read" else 0.5,
                )
            ],
        )

    def wrk(self, server, connections, script, *arguments):
        return wrk(server["url"], connections, self.threads, script, *arguments)

    def read(self, level, connections=CONNECTIONS, stores="servers", flags=()):
        server = self.field.terrace(level, stores, flags=flags)
        return Target(
            self.wrk(server, connections, "read.lua", "/read/", self.keys), server["pids"]
        )

    def write(self, level, connections=CONNECTIONS, stores="servers"):
        server = self.field.terrace(level, stores)
        return Target(
            self.wrk(server, connections, "write.lua", self.keys),
            server["pids"],
            self.field.wal_syncs if stores == "servers" else None,
        )

    def accept(self, connections):
        """Writes that a journal acknowledges. What waits afterwards is applied before the next side
        is measured, and costs this side's CPU."""
        server = self.field.terrace(6)
        run = self.wrk(server, connections, "write.lua", self.keys)

        def run_and_drain(seconds):
            sample = run(seconds)
            self.field.drained(server)
            return sample

        return Target(run_and_drain, server["pids"], self.field.wal_syncs)

    def accept_apart(self, connections):
        """Writes that a journal acknowledges and nobody applies."""
        server = self.field.accepting()
        return Target(self.wrk(server, connections, "write.lua", self.keys), server["pids"])

    def drain(self, keys, most):
        """Applies a backlog, from the first claim on; `most` notes the memory."""

        def run(_):
            start = self.field.backlog(BACKLOG, keys)
            server = start()
            begun = time.monotonic()
            left = before = self.field.queue_length(server)
            while left:
                most.append(memory_mib(server["process"].pid))
                time.sleep(0.02)
                left = self.field.queue_length(server)
            took = time.monotonic() - begun
            self.field.check_key(server["port"], keys.start)
            self.field.check_key(server["port"], keys.stop - 1)
            say(f"  memory of Terrace: {max(most):.0f} MiB")
            self.field.processes.end(server["process"])
            return Sample(before / took, BACKLOG)

        return Target(run, self.field.postgres()["pids"], self.field.wal_syncs)

    def pgbench(self, script, clients, connect_each=False, writes=False):
        server = self.field.reference_table()
        return Target(
            pgbench(server, script, clients, self.threads, self.keys, connect_each),
            server["pids"],
            self.field.wal_syncs if writes else None,
        )

    def hit(self, level, hits, misses):
        """Reads of keys that are all in the cache; the level's own counters must agree."""
        server = self.field.terrace(level)
        self.field.once(f"cached keys of l{level}", lambda: self.field.read_all(server["port"]))
        run = self.wrk(server, CONNECTIONS, "read.lua", "/read/", self.keys)
        return Target(checked(run, server, misses, hits), server["pids"])

    def walk(self, level):
        server = self.field.wide(level, self.wide_keys)
        walked = self.field.started.setdefault(f"walk of l{level}", {"keys": 0})
        run = sweep(server, CONNECTIONS, self.threads, walked, self.wide_keys)
        return Target(checked(run, server, "hits", "misses") if level >= 2 else run, server["pids"])

    def webdis(self):
        server = self.field.webdis()
        return Target(self.wrk(server, CONNECTIONS, "read.lua", "/GET/", self.keys), server["pids"])

    def redis_benchmark(self):
        server = self.field.redis()
        return Target(redis_benchmark(server, CONNECTIONS, self.keys), server["pids"])

    def hello(self):
        server = self.field.hello()
        return Target(
            self.wrk(server, CONNECTIONS, "read.lua", "/read/", self.keys), server["pids"]
        )

    def nginx(self):
        server = self.field.nginx()
        self.field.check_key(server["port"], self.field.key_range().start)
        return Target(
            self.wrk(server, CONNECTIONS, "read.lua", "/read/", self.keys), server["pids"]
        )


def projected(run, server):
    """Counts what was projected during a run instead of what was asked for."""

    def answer():
        return json.loads(http_get(f"{server['url']}/v1/projection")[1])

    def counted(seconds):
        before = answer()["events_projected"]
        sample = run(seconds)
        after = answer()
        events = after["events_projected"] - before
        sample.per_second *= events / max(sample.operations, 1)
        sample.p99_ms = after["lag_p99_us"] / 1000
        return sample

    return counted


def checked(run, server, unwanted, wanted):
    """Fails a run in which more than 1 % of the reads were `unwanted` (hits or misses)."""

    def counters():
        status, body = http_get(f"{server['url']}/cache-stats")
        if status != 200:
            raise Failed(f"/cache-stats answered {status}")
        figures = json.loads(body)
        return figures[unwanted], figures[wanted]

    def run_and_check(seconds):
        before = counters()
        sample = run(seconds)
        after = counters()
        bad, good = after[0] - before[0], after[1] - before[1]
        if not bad + good:
            raise Failed(f"/cache-stats did not count the reads as {wanted}")
        if bad > (bad + good) / 100:
            raise Failed(f"{bad} of {bad + good} reads were {unwanted}")
        return sample

    return run_and_check
