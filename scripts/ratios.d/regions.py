"""Level 9 with its regions as far apart as US, Europe and Asia are."""

import dataclasses
import http.client
import json
import threading
import time

from load import wrk
from processes import Failed
from tools import say

# Round trips of `--wan`, in milliseconds.
TRIPS_MS = {
    frozenset(("us-east", "eu-west")): 80,
    frozenset(("us-east", "asia-pac")): 180,
    frozenset(("eu-west", "asia-pac")): 160,
}
SHORTEST_TRIP_MS = min(TRIPS_MS.values())
REGIONS = sorted(frozenset().union(*TRIPS_MS))
CONNECTIONS, PAUSE_MS = 16, 8  # 2000 writes a second in each region
SECONDS, PROBES = 20, 100


@dataclasses.dataclass
class Wan:
    """What was seen while each region took 2000 writes a second."""

    write_p99_ms: float
    lag_p99_ms: float


def over_wan(field, threads, keys):
    """The slowest region's p99 of writes, and by how much the time from the answer to a write until
    another region shows it is longer than their round trip."""
    server = field.terrace(9, "local", name="l9_wan", fill=False, flags=("--wan",))
    loads = [
        wrk(server["url"], CONNECTIONS, 1, "put.lua", keys, region, PAUSE_MS) for region in REGIONS
    ]
    samples, lags, failures = [], [], []

    def watched(work, *arguments):
        try:
            work(*arguments)
        except Exception as failure:  # told to who waits
            failures.append(failure)

    def load(run):
        samples.append(run(SECONDS))

    def probe(origin):
        for number in range(PROBES // len(REGIONS)):
            lags.extend(_seen_after(server["port"], origin, f"probe-{origin}-{number}"))

    # From here on each region follows each other one: what the first connections cost is no lag.
    for origin in REGIONS:
        _seen_after(server["port"], origin, f"first-{origin}")
    workers = [threading.Thread(target=watched, args=(load, run)) for run in loads]
    workers += [threading.Thread(target=watched, args=(probe, origin)) for origin in REGIONS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise Failed(f"with --wan: {failures[0]}")
    rate = sum(sample.per_second for sample in samples)
    say(f"  with --wan: {rate:,.0f} writes/s in {len(REGIONS)} regions, {len(lags)} probes")
    lags.sort()
    return Wan(max(sample.p99_ms for sample in samples), lags[(len(lags) * 99) // 100])


def _seen_after(port, origin, key):
    """Milliseconds past the round trip until each other region shows a write of `origin`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(method, region, body=None):
        headers = {"X-Region": region, "Content-Type": "application/json"}
        connection.request(method, f"/v1/records/{key}", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers

    status, _ = ask("PUT", origin, json.dumps({"value": key}))
    if status not in (200, 201):
        raise Failed(f"a write in {origin} answered {status}")
    written, waiting, lags = time.monotonic(), set(REGIONS) - {origin}, []
    while waiting:
        for region in list(waiting):
            # A page is of the region alone: a read would ask the others for a key it does not know.
            if _shows(connection, region, key):
                trip = TRIPS_MS[frozenset((origin, region))]
                lags.append((time.monotonic() - written) * 1000 - trip)
                waiting.remove(region)
        if time.monotonic() - written > 30:
            raise Failed(f"{waiting} did not show a write of {origin} within 30 s")
        time.sleep(0.005)
    connection.close()
    return lags


def _shows(connection, region, key):
    path = f"/v1/records?prefix={key}&limit=1"
    connection.request("GET", path, headers={"X-Region": region})
    answer = connection.getresponse()
    return bool(json.loads(answer.read())["records"])
