"""Whatever is killed in the middle of it: clients are answered, and every order, user and item is exactly right."""

import pytest
from e2e.client import in_parallel, post
from e2e.faults import frozen, kill, primary_of, redis, replica_of, wait_for_redis, wait_until
from e2e.load import CLIENTS, Load, patient, strict, waiting
from e2e.shop import a_user, an_item, an_order, credit, done, order, stock

from local.profiles import SERVICES
from local.system import System

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_web_process_costs_no_request(system: System, service: str) -> None:
    with Load(strict) as load:
        kill(system, f"{service}-web-0")
        load.wait_for(5 * CLIENTS)

    load.audit()


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_processor_costs_no_request(system: System, service: str) -> None:
    with Load(strict) as load:
        kill(system, f"{service}-processor-0")
        load.wait_for(5 * CLIENTS)

    load.audit()


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_redis_primary_costs_no_request(system: System, service: str) -> None:
    wait_for_redis(system)
    with Load(strict) as load:
        kill(system, primary_of(system, f"{service}-0"))
        load.wait_for(5 * CLIENTS)

    load.audit()
    wait_for_redis(system)


def test_an_emptied_redis_primary_costs_no_request(system: System) -> None:
    with Load(strict) as load:
        redis(system, primary_of(system, "stock-0")).flushall()
        load.wait_for(5 * CLIENTS)

    load.audit()


def test_a_frozen_processor_that_wakes_up_does_no_harm(system: System) -> None:
    with Load(strict) as load:
        with frozen(system, *(f"{service}-processor-1" for service in SERVICES)):
            load.wait_for(5 * CLIENTS)
        load.wait_for(5 * CLIENTS)

    load.audit()


def test_a_failover_that_forgets_what_was_acknowledged_loses_nothing(system: System) -> None:
    wait_for_redis(system)
    user_id, item_ids = a_user(credit=1_000), [an_item(stock=10) for _ in range(4)]
    primary, replica = primary_of(system, "stock-0"), replica_of(system, "stock-0")
    system.stop(replica)
    order_ids = [an_order(user_id, [(item_id, 1) for item_id in item_ids]) for _ in range(5)]
    in_parallel(lambda order_id: done(post(f"/orders/checkout/{order_id}")), order_ids)
    system.stop(primary)
    system.start(replica)

    wait_until(lambda: primary_of(system, "stock-0") == replica, "the replica is promoted")
    assert [stock(item_id) for item_id in item_ids] == [5, 5, 5, 5]
    assert all(order(order_id)["paid"] for order_id in order_ids)
    assert credit(user_id) == 1_000 - 5 * 4

    system.start(primary)
    wait_for_redis(system)


def test_a_killed_broker_is_waited_for(system: System) -> None:
    with Load(waiting) as load:
        kill(system, "kafka-0")
        load.wait_for(5 * CLIENTS)

    load.audit()


def test_behind_a_killed_gateway_a_client_that_asks_again_with_its_key_acts_once(system: System) -> None:
    with Load(patient) as load:
        for _ in range(3):
            kill(system, "gateway")
            load.wait_for(2 * CLIENTS)

    load.audit()


def test_everything_killed_at_once_comes_back_without_a_difference(system: System) -> None:
    with Load(patient) as load:
        pids = {name: system.kill(name) for name in system.names()}
        for name, pid in pids.items():
            system.wait_for_restart(name, pid)
        load.wait_for(5 * CLIENTS)

    load.audit()
    wait_for_redis(system)


def test_after_down_and_up_everything_is_still_there(system: System) -> None:
    with Load(patient) as load:
        load.wait_for(2 * CLIENTS)
    system.down()
    system.up()

    load.audit()
