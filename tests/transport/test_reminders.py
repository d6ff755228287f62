"""What lasts is told once a minute."""

from drakkar.transport.reminders import MAX_REMINDERS, REPEAT_AFTER_S, Reminders, and_others


def test_a_cause_is_told_at_once_and_then_once_a_minute() -> None:
    now = 100.0
    reminders = Reminders(lambda: now)
    assert [reminders.due("a"), reminders.due("a"), reminders.due("b")] == [True, False, True]
    now += REPEAT_AFTER_S - 1
    assert not reminders.due("a")
    now += 1
    assert [reminders.due("a"), reminders.due("a")] == [3, 0]


def test_a_warning_says_how_many_events_like_it_were_not_written() -> None:
    now = 0.0
    reminders = Reminders(lambda: now)
    assert [reminders.due("a") for _ in range(5)] == [1, 0, 0, 0, 0]
    now += REPEAT_AFTER_S
    assert [reminders.due("a"), reminders.due("a"), reminders.due("b")] == [5, 0, 1]
    now += REPEAT_AFTER_S
    assert reminders.due("a") == 2
    assert (and_others(1), and_others(5)) == ("", " (and 4 like it since the last warning)")


def test_the_number_of_causes_is_bounded() -> None:
    reminders = Reminders(lambda: 0.0)
    assert all(reminders.due(number) for number in range(MAX_REMINDERS + 5))
    assert len(reminders._written) == MAX_REMINDERS
    assert not reminders.due(MAX_REMINDERS + 4)
