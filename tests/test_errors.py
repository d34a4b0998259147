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
