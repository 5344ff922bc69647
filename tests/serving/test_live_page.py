"""The page and its frames over HTTP on loopback."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from spinevision.serving.board import Board
from spinevision.serving.server import LiveServer, host_allowed
from tests.serving.sources import LABELS, fake_frame


@pytest.fixture
def board() -> Board:
    return Board(LABELS, "UNet <b> · camera 0")


@pytest.fixture
def server(board: Board) -> Iterator[LiveServer]:
    with LiveServer(board, port=0) as server:
        yield server


def get(server: LiveServer, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


def following(server: LiveServer, after: int = 0, drawn: str = "nan") -> dict[str, Any]:
    status, _, body = get(server, f"/next?after={after}&drawn={drawn}")
    assert status == 200
    return json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")])


def test_the_page_fetches_nothing_from_elsewhere(server: LiveServer) -> None:
    kinds = {"/": "text/html", "/live.css": "text/css", "/live.js": "text/javascript"}
    for path, kind in kinds.items():
        status, headers, body = get(server, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not re.search(r"https?:|//\w+\.", body.decode())
    page = get(server, "/")[2].decode()
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,", "/live.css", "/live.js"}
    assert "not a medical device" in page
    script = get(server, "/live.js")[2].decode()
    assert set(re.findall(r'\bat\("([\w-]+)"\)|setText\("([\w-]+)"', script)) >= {("picture", ""), ("", "warning")}
    for names in re.findall(r'\bat\("([\w-]+)"\)|setText\("([\w-]+)"', script):
        assert f'id="{"".join(names)}"' in page


def test_what_the_page_learns_once(server: LiveServer, board: Board) -> None:
    setup = json.loads(get(server, "/setup")[2])
    assert setup["title"] == "UNet <b> · camera 0"
    assert setup["session"] == board.session
    colors = [list(LABELS.color(index)) for index in (1, 2)]
    assert [(one["id"], one["name"], one["color"]) for one in setup["classes"]] == [
        (1, "nerve", colors[0]),
        (2, "bleeding", colors[1]),
    ]


def test_frames_follow_each_other(server: LiveServer, board: Board) -> None:
    assert following(server)["state"] == "waiting"
    board.publish(fake_frame(0))
    first = following(server)
    assert (first["state"], first["serial"], first["index"], first["width"]) == ("live", 1, 0, 64)
    assert first["areas"]["nerve"] == pytest.approx(21 / 64)
    assert first["latency_ms"] == 20
    assert first["drawn_ms"] is None
    threading.Timer(0.1, lambda: [board.publish(fake_frame(index)) for index in (1, 2, 3)]).start()
    later = following(server, after=1, drawn=str(first["captured_s"]))
    assert later["index"] in (1, 2, 3)
    assert 20 <= later["drawn_ms"] < 400  # from capture, 20 ms before it came, until it was said to be drawn
    nothing_newer = following(server, after=4)
    assert nothing_newer["quiet_s"] > 0.3
    assert "serial" not in nothing_newer


@pytest.mark.slow
def test_a_stall_and_the_end_are_told(server: LiveServer, board: Board) -> None:
    board.publish(fake_frame(0))
    board._arrived_s -= 2.1
    assert following(server, after=1)["quiet_s"] >= 2.1
    board.end("lost", "the cable is out")
    start_s = time.monotonic()
    told = following(server, after=1)
    assert (told["state"], told["message"]) == ("lost", "the cable is out")
    assert time.monotonic() - start_s < 0.4
    assert following(server, after=0)["serial"] == 1  # who comes late still sees the last picture


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.1.5", "", "[", "localhost.evil"]
)
def test_a_foreign_host_is_refused(server: LiveServer, board: Board, host: str) -> None:
    board.publish(fake_frame(0))
    for path in ("/", "/setup", "/next"):
        status, _, body = get(server, path, host)
        assert status == 403
        assert body.decode() == f"open this page by its address, as {server.address}\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9999", "localhost", "LOCALHOST:80", "[::1]:8787"])
def test_this_machine_is_let_in(server: LiveServer, host: str) -> None:
    assert get(server, "/", host)[0] == 200


def test_beyond_loopback_numbers_and_the_name_given_are_let_in() -> None:
    assert host_allowed("192.168.1.5:8787", "0.0.0.0")
    assert host_allowed("theatre-3:8787", "theatre-3")
    assert not host_allowed("evil.example", "0.0.0.0")


def test_nonsense_is_refused(server: LiveServer) -> None:
    assert get(server, "/next?after=x")[0] == 400
    assert get(server, "/next?drawn=x")[0] == 400
    assert following(server, drawn="inf")["drawn_ms"] is None
    for path in ("/../server.py", "/page/live.html", "/favicon.ico"):
        assert get(server, path)[0] == 404


def test_a_port_in_use_is_said(server: LiveServer, board: Board) -> None:
    with pytest.raises(ValueError, match=f"port {server.port} is in use; choose another with --port"):
        LiveServer(board, port=server.port)
    with pytest.raises(ValueError, match="choose another --host"):
        LiveServer(board, port=99999)


@pytest.mark.slow
def test_a_viewer_that_does_not_read_holds_nobody_up(server: LiveServer, board: Board, caplog: pytest.LogCaptureFixture) -> None:
    noise = fake_frame(0, (900, 1200))
    noise.prediction.frame[:] = np.random.randint(0, 256, noise.prediction.frame.shape)
    board.publish(noise)
    stuck = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    for connection in stuck:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /next?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
    time.sleep(0.3)
    start_s = time.monotonic()
    for index in range(1, 50):
        board.publish(fake_frame(index))
    assert time.monotonic() - start_s < 0.2
    assert following(server)["index"] == 49
    with caplog.at_level(logging.WARNING):
        for connection in stuck:
            connection.close()
        time.sleep(0.2)
    assert caplog.text == ""  # a viewer that goes away is no error
    assert following(server)["index"] == 49
