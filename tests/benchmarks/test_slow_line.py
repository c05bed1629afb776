"""The program that times rounds behind a slow line: the line, what is read of a round, one small run."""

import json
import socket
import threading
import time
from contextlib import contextmanager, nullcontext, suppress

import pytest

from benchmarks import slow_line

RATE, DELAY = 1e6, 0.05
SIZE = 200_000


@pytest.fixture
def echo():
    """Return the port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection):
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def sent_back(port, data):
    """Return the seconds until everything was back."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        threading.Thread(target=connection.sendall, args=(data,)).start()
        came = bytearray()
        while len(came) < len(data):
            came += connection.recv(1 << 16)
        seconds = time.perf_counter() - began
        assert came == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # the end comes through as well
    return seconds


def test_it_carries_everything_and_no_faster_than_it_may(echo):
    data = bytes(i % 251 for i in range(SIZE))
    with slow_line.SlowLine(echo, RATE, DELAY) as line:
        # Both ways at once, but for the first piece.
        assert sent_back(line.port, data) >= SIZE / RATE + 2 * DELAY
        assert line.carried == {"up": SIZE, "down": SIZE}


def test_even_a_byte_is_late(echo):
    with slow_line.SlowLine(echo, RATE, DELAY) as line:
        assert sent_back(line.port, b"a") >= 2 * DELAY


def test_connections_share_it(echo):
    with slow_line.SlowLine(echo, RATE, DELAY) as line:
        threads = [threading.Thread(target=sent_back, args=(line.port, bytes(SIZE))) for _ in range(2)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.perf_counter() - began >= 2 * SIZE / RATE + 2 * DELAY


def test_a_round_lasts_from_one_training_to_the_next():
    lines = [
        (1.0, "INFO :      Receiving: query message (ID: abc)"),
        (2.0, "INFO :      Receiving: train message (ID: ghi)"),
        (4.5, "INFO :      Sent successfully"),
        (5.0, "INFO :      Receiving: train message (ID: jkl)"),
        (9.0, "INFO :      Receiving: train message (ID: mno)"),
        (9.5, "INFO :      Receiving: evaluate message (ID: pqr)"),
    ]
    assert slow_line.rounds(lines) == [3.0, 4.0]


class Line:
    """A line to nowhere, on which a run says what it carried."""

    port = 7

    def __init__(self, *_):
        self.carried = {"up": 0, "down": 0}


class Site:
    """A machine whose site trains for 1 s, 3 s, 5 s ... from one message to the next, as often as it may."""

    port = 1

    def __init__(self, line):
        self.line, self.lines, self.asked = line, [], []

    @contextmanager
    def program(self, *command):
        self.lines, self.asked = [], [*self.asked, command[command.index("--superlink") + 1]]
        yield self

    def flwr_run(self, app, option, run_config):
        number = int(run_config.split("num-rounds=")[1].split()[0])
        size = 40 if 'wire-precision="float32"' in run_config else 10
        self.lines += [(float(n**2), "Receiving: train message") for n in range(1, number + 1)]
        if self.asked[-1] == "127.0.0.1:7":
            self.line.carried["up"] += number * size
        rows = [{"train-seconds": 0.5, "bytes-up": size, "bytes-down": size}] * number
        return [], [*rows, {"evaluate-seconds": 1.0}]


def test_each_precision_has_its_own_rounds_and_bytes(tmp_path, monkeypatch):
    line = Line()
    site = Site(line)
    monkeypatch.setattr(slow_line, "superlink", lambda folder: nullcontext(site))
    monkeypatch.setattr(slow_line, "SlowLine", lambda *_: nullcontext(line))
    monkeypatch.setattr(slow_line.time, "sleep", lambda seconds: None)
    file = tmp_path / "figures.json"
    slow_line.main(["--precisions", "float32", "int8", "--rounds", "3", "--json", str(file)])
    found = json.loads(file.read_text())["found"]
    assert site.asked == ["127.0.0.1:1", "127.0.0.1:7", "127.0.0.1:7"]
    assert found == {
        name: {"seconds": [3.0, 5.0], "training": [0.5, 0.5], "bytes": [2 * size] * 3, "carried": [carried]}
        for name, size, carried in ((slow_line.BESIDE, 40, 0), ("float32", 40, 120), ("int8", 10, 30))
    }


@pytest.mark.slow
def test_it_times_rounds_by_precision(tmp_path, capsys):
    few, file = "reduction-factor=4 train-examples=16 test-examples=4", tmp_path / "figures.json"
    slow_line.main(["--precisions", "int8", "--rounds", "2", "--set", few, "--json", str(file)])
    found = json.loads(file.read_text())["found"]
    assert list(found) == [slow_line.BESIDE, "int8"]
    assert all(len(figures["seconds"]) == 1 for figures in found.values())
    beside, eighth = (figures["carried"][0] for figures in found.values())
    assert beside == 0
    assert eighth > sum(found["int8"]["bytes"])
    assert sum(found[slow_line.BESIDE]["bytes"]) > 3 * sum(found["int8"]["bytes"])
    assert "10 Mbit/s" in capsys.readouterr().out
