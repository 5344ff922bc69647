"""What every test runs under: no network, no user settings, one thread, fixed seeds, torch's global switches put back."""

from __future__ import annotations

import ipaddress
import os
import random
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Set before anything reads them. An empty HF_HOME keeps a person's token and cached models out of the tests; child processes
# inherit a proxy that does not answer, with loopback exempt, so that they stay offline like the tests themselves.
_home = tempfile.TemporaryDirectory(prefix="spinevision-tests-")
_DEAD_PROXY = ("127.0.0.1", 9)
os.environ |= {
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "HF_HOME": _home.name,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
}
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
if threading.current_thread() is threading.main_thread():
    # A shell that runs the tests in the background has them ignore Ctrl-C, and every process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine. Not an OSError, which a client would take for being offline and try again."""


def _is_local(host: Any) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse every connection and name look-up that leaves this machine."""

    def check(host: Any) -> None:
        if not _is_local(host):
            raise NetworkBlockedError(f"a test tried to reach {host}; tests talk to loopback addresses only")

    def guarded(method: Any) -> Any:
        def call(self: socket.socket, *arguments: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check("the network through a proxy" if tuple(arguments[-1][:2]) == _DEAD_PROXY else arguments[-1][0])
            return method(self, *arguments)

        return call

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        check(host)
        return look_up(host, *arguments, **options)

    look_up = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seed every generator before a test, and put torch's global switches back after it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, precision = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark), torch.get_float32_matmul_precision()
    gradients = torch.is_grad_enabled()
    yield
    torch.set_default_dtype(dtype)
    if torch.get_default_device() != device:
        torch.set_default_device(None)
    torch.set_num_threads(threads)
    if deterministic != (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()):
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])  # slow, so only where it is needed
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    torch.set_float32_matmul_precision(precision)
    torch.set_grad_enabled(gradients)


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight generated patients, four frames of 48 x 64 pixels each, with the class "nerve"; tests only read it."""
    from spinevision.phantom import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", patients=8, frames=4, size=(48, 64))


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a recipe that trains in about a second; the classes come from the dataset."""
    recipe = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    recipe.write_text(
        "model:\n  class_path: UNet\n"
        "  init_args: {width: 4, preprocess: {class_path: Preprocess, init_args: {size: [32, 32]}}}\n"
        "data: {num_workers: 0, augment: null}\n"
        "trainer: {max_epochs: 2, log_every_n_steps: 1}\n"
    )
    return recipe


@pytest.fixture(scope="session")
def trained_run(phantom_folder: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that ``tiny_recipe`` leaves on ``phantom_folder``; tests only read it."""
    from spinevision.fitting import fit

    run = tmp_path_factory.mktemp("runs") / "run"
    fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(run)])
    return run
