"""gunicorn's settings for every web process."""

import ctypes
import signal
from typing import Any

from common.config import load

PR_SET_PDEATHSIG = 1

_settings = load()

bind = _settings.bind
workers = 1
threads = _settings.threads
worker_class = "common.worker.DrainingWorker"
worker_connections = 2_000
worker_tmp_dir = "/dev/shm"  # noqa: S108 - the heartbeat file must not wait for a disk
keepalive = 75
timeout = 60
graceful_timeout = 25
loglevel = "warning"
accesslog = None
control_socket_disable = True
limit_request_line = 0  # the gateway's buffer is the limit, and its answer a problem+json
limit_request_field_size = 65_536


def post_fork(_server: Any, _worker: Any) -> None:
    """Let the worker die with its master: an orphan would keep the port for as long as it drains."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
