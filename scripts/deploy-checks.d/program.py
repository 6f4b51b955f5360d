"""What the program says of settings and ports."""

import json
import re
import subprocess


class Refused(Exception):
    """The program does not take these settings; the text is its reason."""


class Program:
    """A terrace that is asked, and serves nothing."""

    def __init__(self, path):
        self.path = path

    def settings(self, variables):
        """The effective settings under these variables: each with its value, and where that is from."""
        asked = subprocess.run(
            [self.path, "config", "--json"], cwd="/", env=variables, text=True, capture_output=True
        )
        if asked.returncode != 0:
            raise Refused(asked.stderr.strip())
        return json.loads(asked.stdout)

    def faults(self, where, variables):
        """What is wrong with these variables: unknown ones, and values that are refused."""
        try:
            settings = self.settings(variables)
        except Refused as refused:
            return [f"{where}: {refused}"]
        sources = {setting["from"] for setting in settings.values()}
        return [
            f"{where}: {name} is no variable that Terrace reads"
            for name in variables
            if not any(_is_from(name, source) for source in sources)
        ]

    def ports(self, level, variables):
        """The ports that a level serves under these variables, the one of metrics last."""
        settings = self.settings(variables)
        number = lambda path: int(settings[path]["value"])
        return [number("server.port_base") + level, *filter(None, [number("metrics.port")])]

    def longest_end_ms(self, level, variables):
        """How long the level may go on after SIGTERM until it closes its stores."""
        settings = self.settings(variables)
        delay = int(settings["server.drain_delay_ms"]["value"]) or (5000 if level == 10 else 0)
        return delay + int(settings["server.drain_timeout_ms"]["value"])


def _is_from(name, source):
    """Whether `source` is this variable. Numbered ones and those of regions are named together."""
    if source == f"environment, {name}":
        return True
    for several, first in [
        (r"SHARD_\d+_URL", "SHARD_0_URL, ..."),
        (r"DB_SHARD\d+_URL", "DB_SHARD1_URL, ..."),
        (r"DB_[A-Z_]+_URL", "DB_..._URL"),
        (r"CACHE_[A-Z_]+_URL", "CACHE_..._URL"),
    ]:
        if re.fullmatch(several, name) and source == f"environment, {first}":
            return True
    return False
