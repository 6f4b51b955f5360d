"""The servers of a run, each started when a row first needs it: Terrace and its references."""

import http.client
import json
import os
import pathlib
import signal
import time
import urllib.request

from processes import KEY, Failed, await_until, free_port, free_ports, http_get, memory_mib
from tools import find, say

HERE = pathlib.Path(__file__).parent
FIRST_KEY = 1_000_001
# Far from the other keys; read once each, so that no cache has seen them.
FIRST_WIDE_KEY = 2_000_000
BATCH = 1000
# What `terrace up` serves by default today, level N on port base + N.
UP_LEVELS = range(11)
# Rows about hits measure hits: both caches hold every key, and none expires during a run.
CACHES = {"CACHE_TTL": "3600", "L1_CACHE_TTL": "3600", "L1_CACHE_SIZE": "100000"}
POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "400",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
}


class Field:
    """Starts servers on demand and remembers them."""

    def __init__(self, processes, terrace, hello, keys):
        self.processes, self.keys = processes, keys
        self.programs = {"terrace": terrace, "hello": hello}
        self.started = {}

    def once(self, name, start):
        if name not in self.started:
            say(f"  starting {name}")
            self.started[name] = start()
        return self.started[name]

    def database_url(self, database):
        return f"postgres://terrace@127.0.0.1:{self.postgres()['port']}/{database}?sslmode=disable"

    def postgres(self):
        """One server for Terrace and pgbench: durable, TCP, `trust` on both sides."""
        return self.once("postgres", self._start_postgres)

    def _start_postgres(self):
        port, data = free_port(), str(self.processes.subfolder("postgres"))
        self.processes.run(
            [
                find("initdb"),
                "-D",
                data,
                "-U",
                "terrace",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
            ]
        )
        settings = [
            word for name, value in POSTGRES_SETTINGS.items() for word in ("-c", f"{name}={value}")
        ]
        psql = [
            find("psql"),
            "-X",
            "-q",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "terrace",
        ]

        def ready():
            try:
                return bool(self.processes.run([*psql, "-d", "postgres", "-c", "SELECT 1"]))
            except Failed:
                return False

        process = self.processes.start(
            "postgres",
            [find("postgres"), "-D", data, "-p", str(port), *settings],
            ready,
            stop=signal.SIGINT,
        )
        return {"pids": [process.pid], "port": port, "psql": psql}

    def database(self, name):
        """An empty database of its own: levels never share data."""
        server = self.postgres()
        return self.once(
            f"database {name}",
            lambda: self.processes.run(
                [*server["psql"], "-d", "postgres", "-c", f"CREATE DATABASE {name}"]
            ),
        )

    def reference_table(self):
        """The table that pgbench reads and writes, on the same server as Terrace's."""
        server = self.postgres()
        self.database("reference")
        script = (HERE / "reference.sql").read_text()
        self.once(
            "reference table",
            lambda: self.processes.run(
                [*server["psql"], "-d", "reference", "-v", f"keys={self.keys}"], text=script
            ),
        )
        return server

    def wal_syncs(self):
        """How often PostgreSQL has flushed its log so far."""
        psql = [*self.postgres()["psql"], "-d", "postgres", "-c"]
        try:
            return int(self.processes.run([*psql, "SELECT wal_sync FROM pg_stat_wal"]))
        except Failed:  # PostgreSQL 18 counts it elsewhere
            return int(
                self.processes.run(
                    [*psql, "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'"]
                )
            )

    def redis(self):
        """A Redis that keeps nothing on disk: a cache, for Terrace (0) and for webdis (1)."""
        return self.once("redis", self._start_redis)

    def journal(self):
        """A Redis that flushes every write before its answer: a journal."""
        return self.once("journal", lambda: self._redis_server("journal", "yes")[0])

    def _redis_server(self, name, appendonly):
        port = free_port()
        command = [
            find("redis-server"),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            appendonly,
            "--appendfsync",
            "always",
            "--dir",
            str(self.processes.subfolder(name)),
        ]
        cli = [find("redis-cli"), "-h", "127.0.0.1", "-p", str(port)]

        def ready():
            try:
                return "PONG" in self.processes.run([*cli, "PING"])
            except Failed:
                return False

        process = self.processes.start(name, command, ready)
        return {"pids": [process.pid], "port": port}, cli

    def _start_redis(self):
        server, cli = self._redis_server("redis", "no")
        # webdis asks for Terrace's keys, redis-benchmark for names of its own form.
        sets = "".join(f"SET {key} value-of-key-{key}\n" for key in self.key_range())
        self.processes.run([*cli, "-n", "1"], text=sets)
        sets = "".join(f"SET key:{n:012} value-of-key-{n:07}\n" for n in range(self.keys))
        self.processes.run([*cli, "-n", "2"], text=sets)
        return server

    def webdis(self):
        return self.once("webdis", self._start_webdis)

    def _start_webdis(self):
        redis, port = self.redis(), free_port()
        settings = {
            "redis_host": "127.0.0.1",
            "redis_port": redis["port"],
            "http_host": "127.0.0.1",
            "http_port": port,
            "threads": os.cpu_count(),
            "database": 1,
            "daemonize": False,
            "verbosity": 0,
            "logfile": "/dev/null",
        }
        path = self.processes.write("webdis.json", json.dumps(settings))
        url = f"http://127.0.0.1:{port}"
        process = self.processes.start(
            "webdis",
            [find("webdis"), str(path)],
            lambda: http_get(f"{url}/GET/{FIRST_KEY}")[0] == 200,
        )
        return {"pids": [process.pid, *redis["pids"]], "url": url}

    def hello(self):
        return self.once("hello", self._start_hello)

    def _start_hello(self):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        program = self.processes.copy(self.programs["hello"])
        process = self.processes.start(
            "hello", [program, str(port)], lambda: http_get(f"{url}/read/x")[0] == 200
        )
        return {"pids": [process.pid], "url": url}

    def nginx(self):
        """proxy_cache in front of L1, with every key already in the cache."""
        return self.once("nginx", self._start_nginx)

    def _start_nginx(self):
        upstream, port = self.terrace(1), free_port()
        folder = self.processes.subfolder("nginx")
        template = (HERE / "nginx.conf").read_text()
        for name, value in {
            "FOLDER": folder,
            "PORT": port,
            "UPSTREAM": upstream["port"],
            "WORKERS": os.cpu_count(),
        }.items():
            template = template.replace(f"@{name}@", str(value))
        path = self.processes.write("nginx.conf", template)
        url = f"http://127.0.0.1:{port}"
        process = self.processes.start(
            "nginx",
            [find("nginx"), "-c", str(path), "-e", "stderr"],
            lambda: http_get(f"{url}/read/{FIRST_KEY}")[0] == 200,
        )
        self.read_all(port)
        with urllib.request.urlopen(f"{url}/read/{FIRST_KEY}") as answer:
            if answer.headers["X-Cache"] != "HIT":
                raise Failed(f"nginx does not cache /read/: X-Cache is {answer.headers['X-Cache']}")
        return {"pids": [process.pid], "url": url, "port": port}

    def terrace(self, level, stores="servers", name=None, fill=True, flags=(), settings=None):
        """`terrace serve`, on the run's servers or others, filled through its own API."""
        name = name or f"l{level}_{stores}"
        server = self.once(
            f"terrace {name}",
            lambda: self._start_terrace(level, stores, name, flags=flags, settings=settings),
        )
        if fill:
            self.once(f"keys of {name}", lambda: self.fill(server["port"], self.key_range()))
        return server

    def _start_terrace(self, level, stores, name, database=None, flags=(), settings=None):
        port, environment, pids = free_port(), {**CACHES, **(settings or {})}, []
        if stores == "servers":
            self.database(database or name)
            environment["DATABASE_URL"] = self.database_url(database or name)
            pids += self.postgres()["pids"]
            if level >= 2:
                environment["REDIS_URL"] = f"redis://127.0.0.1:{self.redis()['port']}/0"
                pids += self.redis()["pids"]
            if level == 10:
                environment["API_KEY"] = KEY["X-API-Key"]
                environment["RATE_LIMIT_REQUESTS"] = "1000000000"
            if level == 6:
                environment["JOURNAL_URL"] = f"redis://127.0.0.1:{self.journal()['port']}"
                pids += self.journal()["pids"]
        data = self.processes.subfolder(f"terrace-{name}")
        command = [
            self.processes.copy(self.programs["terrace"]),
            "serve",
            str(level),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--stores",
            stores,
            "--data-dir",
            str(data),
            *flags,
        ]
        url = f"http://127.0.0.1:{port}"
        process = self.processes.start(
            f"terrace-{name}", command, lambda: http_get(f"{url}/readyz")[0] == 200, environment
        )
        return {
            "process": process,
            "pids": [process.pid, *pids],
            "url": url,
            "port": port,
            "stores": stores,
        }

    def backlog(self, writes, keys):
        """`writes` in a journal that nobody has applied yet, and who will: an instance. They go over
        the keys of this range, round and round."""
        number = self.started["backlogs"] = self.started.get("backlogs", 0) + 1
        name = f"l6_backlog_{number}"
        self.database(name)

        def start(flusher):
            settings = {"TERRACE_JOURNAL_FLUSHER": flusher}
            instance = f"{name}_{flusher}"
            return self._start_terrace(6, "servers", instance, name, settings=settings)

        accepting = start("apart")
        for _ in range(writes // len(keys)):
            self.fill(accepting["port"], keys)
        await_until(lambda: self.queue_length(accepting) == writes, f"a backlog of {writes}")
        self.processes.end(accepting["process"])
        return lambda: start("inside")

    def accepting(self):
        """Level 6 without a flusher, and with room for all that a run may write."""
        settings = {
            "TERRACE_JOURNAL_FLUSHER": "apart",
            "TERRACE_JOURNAL_MAX_WRITES": "100000000",
            "TERRACE_JOURNAL_MAX_BYTES": "8000000000",
        }
        return self.once(
            "terrace l6_apart",
            lambda: self._start_terrace(6, "servers", "l6_apart", settings=settings),
        )

    @staticmethod
    def queue_length(server):
        """How many writes of level 6 wait to be applied."""
        status, body = http_get(f"{server['url']}/stats")
        if status != 200:
            raise Failed(f"/stats answered {status}")
        return json.loads(body)["queue_length"]

    def drained(self, server, seconds=120):
        """Returns when nothing waits any more."""
        await_until(lambda: self.queue_length(server) == 0, "the backlog", seconds=seconds)

    def wide(self, level, keys):
        """L1 and L2 over one table of many keys, none of which is in a cache."""
        self.database("wide")

        def start(of):
            return self.once(
                f"terrace l{of}_wide",
                lambda: self._start_terrace(of, "servers", f"l{of}_wide", database="wide"),
            )

        first = FIRST_WIDE_KEY
        self.once(
            f"{keys} keys to miss", lambda: self.fill(start(1)["port"], range(first, first + keys))
        )
        return start(level)

    def key_range(self):
        return range(FIRST_KEY, FIRST_KEY + self.keys)

    def fill(self, port, keys):
        """Writes keys through the record API, BATCH at a time."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for first in range(keys.start, keys.stop, BATCH):
            batch = range(first, min(first + BATCH, keys.stop))
            writes = [
                {"op": "put", "key": str(key), "value": f"value-of-key-{key}"} for key in batch
            ]
            connection.request(
                "POST",
                "/v1/batch/write",
                json.dumps({"writes": writes}),
                {"Content-Type": "application/json", **KEY},
            )
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            if answer.status != 200:
                raise Failed(f"/v1/batch/write answered {answer.status}: {text[:300]}")
        connection.close()
        self.check_key(port, keys.start)
        for attempt in range(50, -1, -1):
            try:
                self.check_key(port, keys.stop - 1)
                break
            except Failed:  # A replica may be a moment behind.
                if not attempt:
                    raise
                time.sleep(0.1)

    def read_all(self, port):
        """Reads every key twice, so that each cache on the way holds it."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for key in [*self.key_range(), *self.key_range()]:
            connection.request("GET", f"/read/{key}", headers=KEY)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise Failed(f"/read/{key} on port {port} answered {answer.status}")
        connection.close()

    def documents(self):
        """Level 8 on private servers, with a document for each key, each read twice."""
        server = self.terrace(8, "local", fill=False)
        self.once("documents", lambda: self._fill_documents(server["port"]))
        return server

    def _fill_documents(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def ask(method, path, body=None):
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status not in (200, 201):
                raise Failed(f"{path} on port {port} answered {answer.status}: {text[:300]}")
            return json.loads(text)

        for key in self.key_range():
            ask("PUT", f"/v1/documents/{key}", json.dumps({"value": f"value-of-key-{key}"}))
            ask("GET", f"/read/document/{key}")
        for key in list(self.key_range())[::50]:
            if not ask("GET", f"/read/document/{key}")["from_cache"]:
                raise Failed(f"the document {key} is not in the cache")
        connection.close()

    @staticmethod
    def check_key(port, key):
        """A read must give what was written, not only status 200; level 7 may be a little behind."""
        end = time.monotonic() + 10
        while True:
            status, body = http_get(f"http://127.0.0.1:{port}/read/{key}")
            if status == 200 and json.loads(body).get("value") == f"value-of-key-{key}":
                return
            if status != 200 or time.monotonic() > end:
                raise Failed(f"/read/{key} on port {port} answered {status}: {body[:300]}")
            time.sleep(0.05)

    def up(self):
        """(milliseconds until `terrace up` answers on every level, resident MiB at rest)."""
        base = free_ports(max(UP_LEVELS) + 1)
        urls = [f"http://127.0.0.1:{base + level}/readyz" for level in UP_LEVELS]
        data = self.processes.subfolder(f"up-{time.monotonic_ns()}")
        program = self.processes.copy(self.programs["terrace"])
        begin = time.monotonic()
        command = [program, "up", "--data-dir", str(data), "--port-base", str(base)]
        process = self.processes.start(
            "terrace-up", command, lambda: all(http_get(url)[0] == 200 for url in urls)
        )
        elapsed = (time.monotonic() - begin) * 1000
        time.sleep(2)  # at rest: what starting left behind has settled
        memory = memory_mib(process.pid)
        self.processes.end(process)
        return elapsed, memory
