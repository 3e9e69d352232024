"""Settings: what is missing, wrong or unknown ends the process with a sentence that names it."""

from __future__ import annotations

import pytest

from common.config import ConfigError, Settings, load

NEEDED = {"CHECKOUT_KAFKA": "127.0.0.1:9092", "CHECKOUT_REDIS": "127.0.0.1:7000,127.0.0.2:7001"}


def test_what_has_no_default_is_enough() -> None:
    settings = load(NEEDED)

    assert settings.kafka == "127.0.0.1:9092"
    assert settings.redis_nodes == [("127.0.0.1", 7000), ("127.0.0.2", 7001)]
    assert settings.topology == {"order": 2, "stock": 2, "payment": 2}


def test_every_setting_is_named_after_its_field() -> None:
    settings = load(
        {
            **NEEDED,
            "CHECKOUT_ORDER_PARTITIONS": "3",
            "CHECKOUT_STOCK_PARTITIONS": "4",
            "CHECKOUT_PAYMENT_PARTITIONS": "5",
            "CHECKOUT_PATIENCE_MS": "1500",
            "CHECKOUT_BIND": "0.0.0.0:80",
            "CHECKOUT_LOG_LEVEL": "DEBUG",
        }
    )

    assert settings.topology == {"order": 3, "stock": 4, "payment": 5}
    assert (settings.patience_ms, settings.bind, settings.log_level) == (1500, "0.0.0.0:80", "DEBUG")


def test_what_others_have_set_is_not_ours() -> None:
    assert load({**NEEDED, "PATH": "/bin", "KAFKA": "elsewhere:1"}) == load(NEEDED)


@pytest.mark.parametrize("name", ["CHECKOUT_KAFKA", "CHECKOUT_REDIS"])
def test_a_missing_setting_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as raised:
        load({other: text for other, text in NEEDED.items() if other != name})

    assert "wrong configuration" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CHECKOUT_KAFKA", ""),
        ("CHECKOUT_KAFKA", "broker"),
        ("CHECKOUT_KAFKA", "broker:9092;other:9092"),
        ("CHECKOUT_REDIS", "node:7000,"),
        ("CHECKOUT_REDIS", "node:7000, other:7001"),
        ("CHECKOUT_ORDER_PARTITIONS", "0"),
        ("CHECKOUT_STOCK_PARTITIONS", "-1"),
        ("CHECKOUT_PAYMENT_PARTITIONS", "two"),
        ("CHECKOUT_REPLICATION", "1.5"),
        ("CHECKOUT_BIND", "5000"),
        ("CHECKOUT_THREADS", "16"),
        ("CHECKOUT_PATIENCE_MS", ""),
        ("CHECKOUT_BATCH_INIT_PATIENCE_MS", "0"),
        ("CHECKOUT_SESSION_TIMEOUT_MS", "999"),
        ("CHECKOUT_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_setting_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load({**NEEDED, name: text})


@pytest.mark.parametrize("name", ["CHECKOUT_KAFAK", "CHECKOUT_TURBO", "CHECKOUT_ORDER_PARTITION"])
def test_an_unknown_setting_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}\b"):
        load({**NEEDED, name: "1"})


def test_a_wrong_setting_ends_the_process_with_a_sentence() -> None:
    with pytest.raises(SystemExit) as raised:
        load({})

    assert isinstance(raised.value.code, str)  # Python prints it and exits with 1


def test_settings_do_not_change() -> None:
    settings = load(NEEDED)

    with pytest.raises(AttributeError):
        settings.kafka = "elsewhere:1"  # type: ignore[misc]  # mypy knows that, too
    assert isinstance(settings, Settings)
