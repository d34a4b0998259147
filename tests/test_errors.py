import pickle
import traceback

from g2l_plugin.errors import UserError, message_in


def test_the_message_is_found_in_a_workers_report():
    try:
        raise UserError("Too much. Do this.")
    except UserError:
        report = f"Caught UserError in DataLoader worker process 0.\n{traceback.format_exc()}"
    assert message_in(report) == "Too much. Do this."


def test_other_reports_have_none():
    assert message_in("Traceback (most recent call last):\nValueError: no\n") is None


def test_a_name_cannot_end_the_line():
    error = UserError("There is no a\nb\u2028\x1b[31m.png. Rename it…")
    assert str(error) == "There is no a\\nb\\u2028\\x1b[31m.png. Rename it…"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_that_is_raised_again_has_the_first_message():
    try:
        raise UserError("Too much. Do this.")
    except UserError:
        report = f"Caught UserError in DataLoader worker process 0.\n{traceback.format_exc()}"
    assert str(UserError(report)) == "Too much. Do this."
