"""Who the gateway's servers are."""

from __future__ import annotations

from local import gateway
from local.profiles import PROFILES


def test_each_service_has_its_web_processes_and_all_of_them_are_used_when_none_is_ready() -> None:
    blocks = gateway.servers(PROFILES["ha"]).split("\n\n")

    assert [block.splitlines()[0] for block in blocks] == [
        "backend order from service",
        "backend stock from service",
        "backend payment from service",
    ]
    ports = PROFILES["ha"].web_ports("order")
    assert [line.strip() for line in blocks[0].splitlines()[1:]] == [
        f"server order-web-0 127.0.0.1:{ports[0]}",
        f"server order-web-1 127.0.0.1:{ports[1]}",
        "use-server order-web-%[rand(2)] if { nbsrv eq 0 }",
        "use-server order-web-0 if { nbsrv eq 0 }",
        "use-server order-web-1 if { nbsrv eq 0 }",
    ]
