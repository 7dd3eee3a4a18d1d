"""A peer that acknowledges what it is sent and never answers: between featd and PostgreSQL, on a unix socket."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from pathlib import Path

PORT = ".s.PGSQL.5432"


class Stalling:
    """Listens in `folder` and passes everything on to the server whose socket is in `target`. After `stall`, the
    connections that are open then are never closed or answered again; new ones are."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder = folder
        self._target = str(target / PORT)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / PORT))
        (folder / PORT).chmod(0o777)
        self._listener.listen(64)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._stalled: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stalling")
        self._thread.start()

    def stall(self) -> int:
        """Stall the connections that are open now; returns how many."""
        with self._lock:
            some, self._pairs = self._pairs, []
            self._stalled += [end for pair in some for end in pair]
            return len(some)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self.stall()
        for end in (self._listener, *self._stalled):
            end.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                pairs = list(self._pairs)
            others = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
            for ready in select.select([self._listener, *others], [], [], 0.02)[0]:
                if ready is self._listener:
                    with self._lock:
                        self._pairs.append((ready.accept()[0], self._connected()))
                    continue
                with self._lock:
                    pair = next((pair for pair in self._pairs if ready in pair), None)
                    if pair is not None and not self._passed(ready, others[ready]):
                        self._pairs.remove(pair)
                        for end in pair:
                            end.close()

    def _connected(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        return server

    @staticmethod
    def _passed(source: socket.socket, sink: socket.socket) -> bool:
        """Whether both ends live."""
        with contextlib.suppress(OSError):
            if some := source.recv(1 << 16):
                sink.sendall(some)
                return True
        return False
