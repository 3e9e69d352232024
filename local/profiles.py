"""Profiles: how many of each process there are, and where each of them listens and keeps its files."""

from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
SERVICES = ("order", "stock", "payment")
WEB_THREADS = 160


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One size of the system.  Every port and folder of it is computed here and nowhere else."""

    name: str
    brokers: int
    redis_primaries: int = 3
    redis_replicas_per_primary: int
    copies: int
    """How many web processes, and how many processors, each service has."""
    port_offset: int = 0
    listen_offset: int = 0
    """Kafka and Redis listen so far above the ports where they say they are: somebody has to relay in between."""
    memory_min_mb: int
    partitions: int = 2
    """Of each inbox.  One is enough for one processor, and makes the largest batches."""

    @property
    def gateway_port(self) -> int:
        """Where clients come in."""
        return 8000 + self.port_offset

    @property
    def stats_port(self) -> int:
        """Where the gateway answers about itself."""
        return 8404 + self.port_offset

    @property
    def kafka_ports(self) -> tuple[int, ...]:
        """One a broker, where clients and other brokers find it."""
        return self._ports(9092, self.brokers)

    @property
    def controller_ports(self) -> tuple[int, ...]:
        """One a broker, where the quorum finds it."""
        return self._ports(9192, self.brokers)

    @property
    def redis_ports(self) -> tuple[int, ...]:
        """One a node, where clients find it."""
        return self._ports(7000, self.redis_primaries * (1 + self.redis_replicas_per_primary))

    @property
    def redis_bus_ports(self) -> tuple[int, ...]:
        """One a node, where the other nodes find it."""
        return self._ports(7100, len(self.redis_ports))

    def web_ports(self, service: str) -> tuple[int, ...]:
        """One a web process of `service`, for the gateway."""
        return self._ports(8010 + 10 * SERVICES.index(service), self.copies)

    def processor_ports(self, service: str) -> tuple[int, ...]:
        """One a processor of `service`, for /health and /metrics."""
        return self._ports(8110 + 10 * SERVICES.index(service), self.copies)

    def snapshotter_port(self, service: str) -> int:
        """Where its snapshotter answers /health and /metrics."""
        return 8140 + SERVICES.index(service) + self.port_offset

    @property
    def data_ports(self) -> tuple[int, ...]:
        """Where Kafka and Redis are found."""
        return self.kafka_ports + self.controller_ports + self.redis_ports + self.redis_bus_ports

    @property
    def service_ports(self) -> tuple[int, ...]:
        """What the gateway and the services listen on."""
        services = (self.web_ports(service) + self.processor_ports(service) for service in SERVICES)
        snapshotters = tuple(self.snapshotter_port(service) for service in SERVICES)
        return (self.gateway_port, self.stats_port, *sum(services, ()), *snapshotters)

    @property
    def listened_ports(self) -> tuple[int, ...]:
        """What the profile's processes listen on."""
        return (*(port + self.listen_offset for port in self.data_ports), *self.service_ports)

    @property
    def home(self) -> Path:
        """Everything that this profile ever writes."""
        return REPOSITORY / ".local" / self.name

    @property
    def conf(self) -> Path:
        """Generated at every `up`."""
        return self.home / "conf"

    @property
    def code(self) -> Path:
        """A link to the code that web processes and processors are started from."""
        return self.home / "code"

    @property
    def data(self) -> Path:
        """Kafka's and Redis' folders, one a process."""
        return self.home / "data"

    @property
    def logs(self) -> Path:
        """One file a process, rotated."""
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """Supervisor's socket and pid."""
        return self.home / "run"

    @property
    def redis_members(self) -> Path:
        """The cluster as it was created, kept apart from the nodes' own folders: that it exists is known here."""
        return self.data / "redis-members"

    def _ports(self, first: int, count: int) -> tuple[int, ...]:
        return tuple(range(first + self.port_offset, first + self.port_offset + count))


def addresses(ports: tuple[int, ...]) -> str:
    """`host:port,host:port`, as every client of Kafka and Redis reads it."""
    return ",".join(f"{HOST}:{port}" for port in ports)


TEST = Profile(name="test", brokers=1, redis_replicas_per_primary=1, copies=2, port_offset=10_000, memory_min_mb=1500)
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="small", brokers=1, redis_replicas_per_primary=0, copies=1, memory_min_mb=1000, partitions=1),
        Profile(name="ha", brokers=3, redis_replicas_per_primary=1, copies=2, memory_min_mb=2500),
        Profile(
            name="net",
            brokers=3,
            redis_replicas_per_primary=1,
            copies=2,
            listen_offset=300,
            memory_min_mb=2500,
        ),
        TEST,
        replace(TEST, name="test-e2e", port_offset=12_500),
    )
}
