"""What a pool has left to do: in which order, how often, and for how long."""

import pytest

from actors.pool.worklist import WorkList


def work(*items, kind=lambda item: item[0]):
    return WorkList(items, kind)


def take(work, mine=None, taken=(), alone=True):
    found = work.take(mine, set(taken), alone=alone)
    return found and found[0]


def test_items_of_the_own_kind_come_first_and_of_others_kinds_last():
    left = work("a1", "b1", "a2", "c1")
    assert take(left, mine="a") == "a1"
    assert take(left, mine="a") == "a2"
    assert take(left, mine="a", taken="b") == "c1"
    assert take(left, mine="a", taken="b") == "b1"
    assert take(left) is None


def test_every_item_is_waiting_running_done_or_set_aside():
    left = work("a1", "a2", "a3")
    assert (left.waiting, left.left) == (3, 3)
    first, second, third = (take(left) for _ in range(3))
    assert (left.waiting, left.left) == (0, 3)
    left.done(first, {}, 1.0)
    left.give_back(second)
    for _ in range(2):
        left.failed(third, "never")
        assert third in [take(left) for _ in range(left.waiting)]
    left.failed(third, "never")
    assert left.given_up == {"a3": "failed 3 times: never"}
    assert left.left == 1


def test_an_item_that_was_not_done_after_all_waits_again():
    left = work("a1")
    left.done(take(left), {}, 1.0)
    left.undo("a1")
    assert (left.waiting, left.left, left.receipts) == (1, 1, {})


def test_an_item_that_a_worker_died_over_comes_last_and_runs_alone():
    left = work("a1", "b1")
    left.died(take(left), "killed")
    assert left.is_suspect("a1")
    assert take(left, mine="a") == "b1"
    assert take(left, mine="a", alone=False) is None
    assert take(left, mine="a", alone=True) == "a1"


def test_five_deaths_set_an_item_aside():
    left = work("a1")
    for _ in range(5):
        assert not left.given_up
        left.died(take(left), "killed")
    assert left.given_up == {"a1": "ended its worker 5 times: killed"}


def test_nothing_is_slow_before_three_items_are_done():
    left = work(*(f"a{i}" for i in range(6)))
    for number in range(3):
        assert not left.is_slow(1e9)
        left.done(f"a{number}", {}, 100.0)
    assert left.usual_seconds == 100.0
    assert left.is_slow(301) and not left.is_slow(299)


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_short_items_are_not_slow_within_a_minute(seconds):
    left = work(*(f"a{i}" for i in range(6)))
    for number in range(3):
        left.done(f"a{number}", {}, seconds)
    assert not left.is_slow(59)
    assert left.is_slow(61)


def test_an_item_that_hung_is_given_twice_as_long_each_time():
    left = work(*(f"a{i}" for i in range(6)))
    for number in range(3):
        left.done(f"a{number}", {}, 100.0)
    for times in range(3):
        assert left.is_hung("a5", 1001 * 2**times)
        assert not left.is_hung("a5", 999 * 2**times)
        left.hung("a5")
