"""Videos with sound for tests, what is in a file, and a server on loopback that plays one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np

SAMPLE_RATE = 16000


def write_with_sound(
    path: Path, images: Iterable[np.ndarray], codec: str = "aac", *, times_s: Sequence[float] | None = None, rate: int = 25
) -> Path:
    """Frames and a rising tone as long as they are, in the container that the ending says."""
    images = [*images]
    times_s = times_s or [index / rate for index in range(len(images))]
    count = round((times_s[-1] - times_s[0] + 1 / rate) * SAMPLE_RATE)
    seconds = np.arange(count) / SAMPLE_RATE
    tone = (0.3 * np.sin(2 * np.pi * (300 + 400 * seconds) * seconds)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        video.height, video.width, video.pix_fmt = *images[0].shape[:2], "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        for start in range(0, count, 1024):
            samples = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
        for image, time_s in zip(images, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def write_raw(path: Path, images: Iterable[np.ndarray]) -> Path:
    """Frames as bare H.264; two such files one after the other are one."""
    images = [*images]
    with av.open(str(path), "w", format="h264") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "10"})
        video.height, video.width, video.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode(None))
    return path


def sound_packets(path: Path) -> list[tuple[float, bytes]]:
    """Time (s) and content of every packet of sound."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in container.demux(audio=0) if packet.size]


def sound_samples(path: Path) -> tuple[float, np.ndarray]:
    """Where the sound begins (s), and its samples."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        frames = [made for frame in container.decode(audio=0) for made in resampler.resample(frame)]
        return float(frames[0].time or 0), np.concatenate([frame.to_ndarray()[0] for frame in frames])


def join(*paths: Path) -> bytes:
    """Transport streams, or bare H.264, one after the other are one stream."""
    return b"".join(path.read_bytes() for path in paths)


@contextmanager
def serving(parts: Iterable[bytes], *, kind: str = "video/mp2t", pause_s: float = 0.0, hold_s: float = 0.0) -> Iterator[str]:
    """Serve bytes on loopback, part after part with pauses; the connection stays open for ``hold_s`` after the last."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                    if stop.wait(pause_s):
                        return
                stop.wait(hold_s)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                pass  # the reader has gone

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stream"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def own_threads() -> list[str]:
    """Names of the threads of this package that are alive; those that are just ending get a moment."""
    for _ in range(50):
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("spinevision")]
        if not names:
            break
        time.sleep(0.01)
    return names
