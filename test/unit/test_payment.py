"""Payment's rules, one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from builders import ONE_EACH, TWO_EACH, after, an_arrival, asked, given, sent_by
from world import World, entities_of

from common.batch_init import BatchInit, ChunkFilled, FillChunk
from common.decision import Decision, NotLoaded, Reply, Send, State
from common.fold import Memory
from common.messages import (
    AMOUNT_MAX,
    AskPrice,
    ChargeRefused,
    ChargeUser,
    Done,
    Letter,
    Reason,
    RefundUser,
    Refused,
    SettleCharge,
    UserCharged,
    UserRefunded,
    partition_of,
)
from payment.domain import (
    MACHINE,
    NO_CREDIT,
    NO_USER,
    TOO_MUCH,
    Account,
    AddFunds,
    CreateUser,
    InitUsers,
    Pay,
    PaymentMessage,
    decide,
    excuse,
    keys,
)

COMMAND = asked("payment-0-9-0")
FROM_ORDER = sent_by("order-0", "payment-0-9-0")


def an_account(credit: int = 0, held: int = 0) -> Account:
    return Account(credit, held)


def charge(amount: int) -> ChargeUser:
    return ChargeUser("c1", "ann", amount)


# --- commands


def test_a_new_user_has_no_credit() -> None:
    assert decide(given(), CreateUser("ann"), COMMAND) == Decision({"Account:ann": an_account()}, (Done("ann"),))


def test_creating_a_user_who_exists_tells_the_id_and_changes_nothing() -> None:
    decision = decide(given(ann=an_account(credit=3)), CreateUser("ann"), COMMAND)

    assert decision == Decision({}, (Done("ann"),))


def test_adding_funds_tells_the_new_credit() -> None:
    decision = decide(given(ann=an_account(credit=1, held=4)), AddFunds("ann", 2), COMMAND)

    assert decision == Decision({"Account:ann": an_account(credit=3, held=4)}, (Done("3"),))


def test_credit_and_holds_together_may_reach_the_limit() -> None:
    decision = decide(given(ann=an_account(held=10)), AddFunds("ann", AMOUNT_MAX - 10), COMMAND)

    assert decision.state == {"Account:ann": an_account(credit=AMOUNT_MAX - 10, held=10)}


def test_credit_and_holds_together_may_not_pass_the_limit() -> None:
    decision = decide(given(ann=an_account(held=10)), AddFunds("ann", AMOUNT_MAX - 9), COMMAND)

    assert decision == Decision({}, (TOO_MUCH,))


def test_the_last_cent_can_be_paid() -> None:
    decision = decide(given(ann=an_account(credit=2)), Pay("ann", 2), COMMAND)

    assert decision == Decision({"Account:ann": an_account(credit=0)}, (Done("0"),))


def test_paying_more_than_the_credit_is_refused_and_changes_nothing() -> None:
    assert decide(given(ann=an_account(credit=1)), Pay("ann", 2), COMMAND) == Decision({}, (NO_CREDIT,))


def test_what_a_checkout_holds_counts_as_spent() -> None:
    assert decide(given(ann=an_account(credit=0, held=5)), Pay("ann", 1), COMMAND) == Decision({}, (NO_CREDIT,))


@pytest.mark.parametrize("command", [AddFunds("ann", 1), Pay("ann", 1)])
def test_an_unknown_user_has_nothing_to_change(command: PaymentMessage) -> None:
    assert decide(given(), command, COMMAND) == Decision({}, (NO_USER,))


def test_refusals_have_the_reasons_that_become_404_402_and_409() -> None:
    reasons = (NO_USER.reason, NO_CREDIT.reason, TOO_MUCH.reason)

    assert reasons == (Reason.NOT_FOUND, Reason.NO_CREDIT, Reason.CONFLICT)


# --- checkouts


def test_a_charge_holds_the_amount() -> None:
    decision = decide(given(ann=an_account(credit=5, held=1)), charge(5), FROM_ORDER)

    assert decision == Decision({"Account:ann": an_account(credit=0, held=6)}, (UserCharged("c1"),))


def test_a_charge_of_nothing_needs_no_credit() -> None:
    decision = decide(given(ann=an_account()), charge(0), FROM_ORDER)

    assert decision == Decision({"Account:ann": an_account()}, (UserCharged("c1"),))


def test_a_charge_beyond_the_credit_is_refused_and_holds_nothing() -> None:
    decision = decide(given(ann=an_account(credit=4, held=9)), charge(5), FROM_ORDER)

    assert decision == Decision({}, (ChargeRefused("c1", NO_CREDIT),))


def test_an_unknown_user_is_not_charged_even_nothing() -> None:
    assert decide(given(), charge(0), FROM_ORDER) == Decision({}, (ChargeRefused("c1", NO_USER),))


def test_what_is_settled_is_spent_and_nobody_is_told() -> None:
    decision = decide(given(ann=an_account(credit=1, held=6)), SettleCharge("c1", "ann", 5), FROM_ORDER)

    assert decision == Decision({"Account:ann": an_account(credit=1, held=1)})


def test_what_is_refunded_is_credit_again() -> None:
    decision = decide(given(ann=an_account(credit=1, held=6)), RefundUser("c1", "ann", 5), FROM_ORDER)

    assert decision == Decision({"Account:ann": an_account(credit=6, held=1)}, (UserRefunded("c1"),))


@pytest.mark.parametrize("message", [SettleCharge("c1", "ann", 5), RefundUser("c1", "ann", 5)])
@pytest.mark.parametrize("state", [given(), given(ann=an_account(credit=9, held=4))])
def test_only_what_was_charged_is_settled_or_refunded(message: PaymentMessage, state: State) -> None:
    with pytest.raises(AssertionError, match="only what was charged"):
        decide(state, message, FROM_ORDER)


# --- batch_init


def test_batch_init_sends_every_partition_its_first_chunk() -> None:
    arrival = asked("payment-1-9-0", topology=TWO_EACH)

    decision = decide(given(), InitUsers(10, 100), arrival)

    chunk = FillChunk("payment-1-9-0", 0, 10, (100,))
    init = BatchInit(arrival.asker, 10, (100,), ("payment-0", "payment-1"))
    assert decision == Decision({"BatchInit:payment-1-9-0": init}, (Send("payment-0", chunk), Send("payment-1", chunk)))


def test_a_chunk_makes_the_users_who_live_here_and_no_others() -> None:
    arrival = sent_by("payment-1", "payment-0-9-0", topology=TWO_EACH)

    decision = decide(given(), FillChunk("i1", 0, 50, (100,)), arrival)

    here = [str(number) for number in range(50) if partition_of("payment", str(number), TWO_EACH) == "payment-0"]
    assert decision.state == {f"Account:{user_id}": an_account(credit=100) for user_id in here}
    assert decision.messages == (ChunkFilled("i1", 50),)


def test_a_chunk_keeps_what_open_checkouts_hold() -> None:
    decision = decide(given(**{"0": an_account(credit=9, held=3)}), FillChunk("i1", 0, 1, (100,)), FROM_ORDER)

    assert decision.state == {"Account:0": an_account(credit=100, held=3)}


def test_a_chunk_and_what_is_held_may_not_pass_the_limit_together() -> None:
    decision = decide(given(**{"0": an_account(held=3)}), FillChunk("i1", 0, 1, (AMOUNT_MAX,)), FROM_ORDER)

    assert decision.state == {"Account:0": an_account(credit=AMOUNT_MAX - 3, held=3)}


def test_batch_init_is_answered_when_the_only_partition_is_filled() -> None:
    state = after(given(), decide(given(), InitUsers(10, 100), COMMAND).state)

    decision = decide(state, ChunkFilled("payment-0-9-0", 10), sent_by("payment-0", "payment-0-10-0"))

    assert decision == Decision({"BatchInit:payment-0-9-0": None}, (Reply(COMMAND.asker, Done("10")),))


# --- all messages

LETTERS = [charge(1), SettleCharge("c1", "ann", 1), RefundUser("c1", "ann", 1), FillChunk("i1", 0, 1, (100,))]
COMMANDS = [CreateUser("bob"), AddFunds("ann", 1), Pay("ann", 1), InitUsers(3, 100)]


@pytest.mark.parametrize("message", [*LETTERS, *COMMANDS])
def test_every_key_that_a_message_needs_for_sure_is_named_beforehand(message: PaymentMessage) -> None:
    arrival = an_arrival("payment-0-9-0", "order-0", asked().asker)
    memory = Memory(dict.fromkeys(keys(message, arrival), an_account(credit=9, held=9)))

    try:
        decide(memory, message, arrival)
    except NotLoaded as missing:
        pytest.fail(f"{missing.key} was not named")


@pytest.mark.parametrize("ask", [decide, lambda _, message, arrival: list(keys(message, arrival))])
def test_a_message_for_another_service_is_a_bug(ask: Callable[..., object]) -> None:
    with pytest.raises(AssertionError):
        ask(given(), AskPrice("a1", "apple"), FROM_ORDER)


def a_world() -> World:
    """A payment partition with a user, some of whose money is held for checkout c1."""
    world = World(ONE_EACH, [MACHINE])
    world.carry_out("payment", "ann", CreateUser("ann"))
    world.carry_out("payment", "ann", AddFunds("ann", 10))
    world.log.append("payment-0", [Letter("order-0", 1, charge(5))])
    world.run()
    return world


@pytest.mark.parametrize("command", COMMANDS)
def test_a_repeat_is_answered_alike_and_changes_nothing(command: PaymentMessage) -> None:
    world = a_world()
    first = world.carry_out("payment", "ann", command, "key/k1")
    before = entities_of(world.store)

    again = world.carry_out("payment", "ann", command, "key/k1")

    assert again == first
    assert entities_of(world.store) == before
    assert world.folded[-1].letters == {}


@pytest.mark.parametrize("letter", LETTERS)
def test_a_repeated_letter_is_dropped_and_changes_nothing(letter: PaymentMessage) -> None:
    world = a_world()
    world.log.append("payment-0", [Letter("order-0", 2, letter)])
    world.run()
    before = entities_of(world.store)

    world.log.append("payment-0", [Letter("order-0", 2, letter)])
    world.run()

    assert entities_of(world.store) == before
    assert world.folded[-1].repeats == 1
    assert world.folded[-1].letters == {}


def test_a_charge_that_could_not_be_decided_is_refused_so_that_its_checkout_ends() -> None:
    (answer,) = excuse(charge(1))

    assert isinstance(answer, ChargeRefused)
    assert answer.refusal == Refused(Reason.INTERNAL, answer.refusal.detail)


@pytest.mark.parametrize("message", [RefundUser("c1", "ann", 1), SettleCharge("c1", "ann", 1), AddFunds("ann", 1)])
def test_nothing_else_has_an_excuse(message: PaymentMessage) -> None:
    assert excuse(message) == ()
