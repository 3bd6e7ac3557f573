"""A waitress in a thread of the test, with a way to end it although connections are open."""

import contextlib
import threading
from typing import Any

import waitress.server


class Served:
    """An application that is served until ``stop``.

    Attributes:
        port: where, on 127.0.0.1.
    """

    def __init__(self, app: Any, *, threads: int) -> None:
        self._server = waitress.server.create_server(app, host="127.0.0.1", port=0, threads=threads)
        self.port = int(self._server.effective_port)
        self._thread = threading.Thread(target=self._server.run, name="web-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.task_dispatcher.shutdown(timeout=5)
        # It may have hung up, and closed what wakes it, before it is woken: a request woke it at that moment.
        with contextlib.suppress(OSError):
            self._server.trigger.pull_trigger(self._hang_up)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _hang_up(self) -> None:
        """In the server's thread, which ends when nothing is open any more."""
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()
        self._server.close()
