"""gunicorn's settings for every web process."""

from common.config import load

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
