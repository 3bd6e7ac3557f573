"""A mongod for development and tests: a replica set of one."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventdriven_sync.devserver.ports import LOOPBACK, connect
from eventdriven_sync.devserver.process import LAUNCHES, LocalServer, ServerStartFailed

if TYPE_CHECKING:
    from pymongo.database import Database

_NOT_YET_INITIALIZED = 94
_NOT_A_MEMBER = 93


class Mongod(LocalServer):
    """A mongod that is a replica set of one, so that transactions work."""

    program = "mongod"
    variable = "EVENTDRIVEN_MONGOD_BIN"
    installing = (
        "  docker run -p 127.0.0.1:27017:27017 mongo --replSet rs0    (then rs.initiate() once in mongosh)\n"
        "The wheel exists for Linux x86-64 (glibc 2.34 or newer, libssl3, libcurl4), macOS and Windows."
    )

    @property
    def url(self) -> str:
        """The connection string, with ``eventdriven`` as database."""
        return self.url_for("eventdriven")

    def url_for(self, database: str) -> str:
        """The connection string with this database.

        It names the replica set: a client then waits for the primary after a restart. Through a proxy
        add ``&directConnection=true``, or the client goes round the proxy.
        """
        return f"mongodb://{LOOPBACK}:{self.port}/{database}?replicaSet=rs0"

    def await_ready(self) -> None:
        """Wait until the server is the primary of its set, which is initiated on the first start.

        Raises:
            ServerStartFailed: it ended or is not writable within ``start_timeout`` seconds.
        """
        import pymongo

        settled = self._port_is_settled
        super().await_ready()
        deadline = time.monotonic() + self._start_timeout
        url = f"mongodb://{LOOPBACK}:{self.port}/?directConnection=true"
        with pymongo.MongoClient[Any](url, serverSelectionTimeoutMS=1000, socketTimeoutMS=5000) as client:
            while (obstacle := self._obstacle(client.admin)) is not None:
                if not self.running:
                    # What answered was not ours, if the port is somebody else's.
                    self._port_is_settled = settled
                    self._launch_again(LAUNCHES if settled else 1)
                    return self.await_ready()
                self._wait_a_little(deadline, last_error=obstacle)
        return None

    def _obstacle(self, admin: Database[Any]) -> Exception | None:
        """What keeps the server from being primary; it passes by itself in most starts.

        A restarted server answers a moment before it has read its configuration, and drops connections
        when it changes its role: such errors only mean to ask again.
        """
        from pymongo.errors import PyMongoError

        try:
            if self.process is None or admin.command("serverStatus")["pid"] != self.process.pid:
                return ServerStartFailed("another mongod answers on this port")
            self._join(admin)
            primary = admin.command("hello")["isWritablePrimary"]
        except PyMongoError as error:
            return error
        return None if primary else ServerStartFailed("it is not the primary yet")

    def _join(self, admin: Database[Any]) -> None:
        """Make this server the one member of its set, also after its port changed."""
        from pymongo.errors import OperationFailure

        host = f"{LOOPBACK}:{self.port}"
        try:
            admin.command("replSetGetStatus")
        except OperationFailure as error:
            if error.code == _NOT_YET_INITIALIZED:
                admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": host}]})
            elif error.code == _NOT_A_MEMBER:
                config = admin.command("replSetGetConfig")["config"]
                config["version"] += 1
                config["members"][0]["host"] = host
                admin.command("replSetReconfig", config, force=True)
            else:
                raise

    def _command(self, binary: str) -> list[str]:
        return [
            *(binary, "--dbpath", str(self.data_dir)),
            *("--bind_ip", LOOPBACK, "--port", str(self.port), "--nounixsocket"),
            *("--replSet", "rs0", "--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.25"),
            *("--quiet", "--setParameter", "diagnosticDataCollectionEnabled=false"),
        ]

    def _answers(self) -> bool:
        try:
            connect(self.port).close()
        except OSError:
            return False
        return True

    def _binary_in_wheel(self) -> str | None:
        # find_spec does not import fiftyone, which would start a database of its own.
        spec = importlib.util.find_spec("fiftyone")
        places = (spec.submodule_search_locations or []) if spec else []
        found = (shutil.which(str(Path(place, "db", "bin", "mongod"))) for place in places)
        return next(filter(None, found), None)
