"""A TCP proxy that keeps what it forwards, like a capture on the wire, and can be cut like one."""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from socketserver import ThreadingTCPServer
from typing import Self


@dataclass
class Connection:
    """What went over one connection: to the server and back."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)


class Proxy(ThreadingTCPServer):
    """Forwards every connection to a port of this machine until the block ends.

    Attributes
    ----------
    port : int
        Where it listens.
    connections : list[Connection]
        All that there were.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), None)
        self.port, self.target = self.server_address[1], target
        self.connections: list[Connection] = []
        self._whole = threading.Event()
        self._whole.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def cut(self) -> None:
        """Let nothing through any more, and say so to nobody."""
        self._whole.clear()

    def mend(self) -> None:
        """Let things through again; what was sent meanwhile is lost, and its connections with it."""
        self._whole.set()

    def finish_request(self, request: socket.socket, client_address: object) -> None:
        """Forward one connection, in a thread of its own."""
        connection = Connection()
        self.connections.append(connection)
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            ways = ((request, server, connection.up), (server, request, connection.down))
            threads = [threading.Thread(target=self._forward, args=way, daemon=True) for way in ways]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _forward(self, source: socket.socket, sink: socket.socket, record: bytearray) -> None:
        with suppress(OSError):  # the other way's thread closed it
            while data := source.recv(1 << 16):
                if not self._whole.is_set():
                    self._whole.wait()
                    break
                record += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
