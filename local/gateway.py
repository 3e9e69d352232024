"""HAProxy: which servers a profile has, and how it is started."""

from local.profiles import HOST, REPOSITORY, SERVICES, WEB_THREADS, Profile

CONFIG = REPOSITORY / "gateway" / "haproxy.cfg"
FIRST_SEGMENT = {"order": "orders", "stock": "stock", "payment": "payment"}
HEALTH_CHECK_THREADS = 16


def servers(profile: Profile) -> str:
    """Return the second configuration file: three backends and their servers."""
    return "\n".join(_backend(service, profile.web_ports(service)) for service in SERVICES)


def start_command(profile: Profile) -> tuple[str, ...]:
    """Return the command that becomes the gateway: one process, in the foreground."""
    return ("haproxy", "-db", "-f", str(CONFIG), "-f", str(profile.conf / "servers.cfg"))


def environment(profile: Profile) -> dict[str, str]:
    """Return what gateway/haproxy.cfg reads."""
    return {
        "GATEWAY_BIND": f"{HOST}:{profile.gateway_port}",
        "GATEWAY_STATS_BIND": f"{HOST}:{profile.stats_port}",
        "GATEWAY_SERVER_MAXCONN": str(WEB_THREADS - HEALTH_CHECK_THREADS),
    }


def url(profile: Profile, service: str) -> str:
    """Return where clients find `service`."""
    return f"http://{HOST}:{profile.gateway_port}/{FIRST_SEGMENT[service]}"


def _backend(service: str, ports: tuple[int, ...]) -> str:
    """Return the servers, and that those which only say that they are not ready are used when none is ready."""
    names = [f"{service}-web-{copy}" for copy in range(len(ports))]
    lines = [f"server {name} {HOST}:{port}" for name, port in zip(names, ports, strict=True)]
    any_of_them = f"{service}-web-%[rand({len(ports)})]"  # then each in turn: that one may be dead
    lines += [f"use-server {name} if {{ nbsrv eq 0 }}" for name in (any_of_them, *names)]
    return "\n    ".join([f"backend {service} from service", *lines]) + "\n"
