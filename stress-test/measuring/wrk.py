"""wrk, the generator: one run of distinct checkouts over a fixed number of connections."""

import json
import subprocess
from dataclasses import asdict, dataclass

from measuring import ROOT

SCRIPT = ROOT / "stress-test" / "checkout.lua"
ANSWER_TIMEOUT_S = 30
EXIT_PATIENCE_S = 30


@dataclass(frozen=True)
class WrkResult:
    """What wrk counted.  `issued` orders were asked for, of which `answers` were answered before the time was up."""

    answers: int
    duration_us: int
    p50_us: int
    p99_us: int
    issued: int
    exhausted: int
    not_2xx: int
    connection_errors: int
    timeouts: int

    @property
    def faults(self) -> dict[str, int]:
        """Return what should not have happened, empty for a clean run."""
        names = ("not_2xx", "connection_errors", "timeouts", "exhausted")
        return {name: count for name, count in asdict(self).items() if name in names and count}


def run_wrk(gateway_url: str, connections: int, seconds: int, orders: range) -> WrkResult:
    """Check out `orders` over `connections` connections for `seconds`; whoever gets an answer asks for the next."""
    threads = min(2, connections)
    shape = ["-t", str(threads), "-c", str(connections), "-d", f"{seconds}s", "--timeout", f"{ANSWER_TIMEOUT_S}s"]
    arguments = [str(orders.start), str(len(orders)), str(threads)]
    finished = subprocess.run(
        ["wrk", *shape, "-s", str(SCRIPT), gateway_url, "--", *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=seconds + EXIT_PATIENCE_S,
    )
    return WrkResult(**json.loads(finished.stdout.splitlines()[-1]))
