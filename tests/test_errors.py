import pickle
import textwrap
import traceback
from typing import Literal

import jsonargparse
import pytest

from g2l_plugin.errors import UserError, message_in, wrong_field_in


class Inner:
    def __init__(self, size: int | None = None, kind: Literal["a", "b"] = "a"):
        pass


class Outer:
    def __init__(self, steps: int = 1, inner: Inner | None = None):
        pass


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


@pytest.mark.parametrize(
    ("steps", "inner", "expected"),
    [
        ("ten", {}, "steps is 'ten': expected int"),
        (1e3, {}, "steps is '1000.0': expected int"),
        (2, {"size": "big"}, "size is 'big': expected int or null"),
        (2, {"size": ""}, "size is '': expected int or null"),
        (2, {"kind": "c"}, "kind is 'c': expected Literal['a', 'b']"),
        (2, {"length": 3}, f"inner: {__name__}.Inner: Option 'length' is not accepted"),
    ],
)
def test_a_wrong_field_is_found_in_the_parsers_report(steps, inner, expected):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Outer, "outer")
    inner = {"class_path": f"{__name__}.Inner", "init_args": inner}
    init_args = {"steps": steps, "inner": inner}
    with pytest.raises(jsonargparse.ArgumentError) as error:
        parser.parse_object({"outer": {"class_path": f"{__name__}.Outer", "init_args": init_args}})
    assert wrong_field_in(str(error.value)) == expected


def test_what_else_was_tried_is_not_what_is_wrong():
    report = """
        Parser key "model":
          Errors:
            - Problem with given class_path 'a.Net':
                Parser key "size":
                  Expected a <class 'int'>. Got value: big
            - Problem with given class_path 'a.Net':
                Not a subclass of b.Net
          Given value type: <class 'dict'>
          Given value: {'class_path': 'a.Net', 'init_args': {'size': 'big'}}
    """
    assert wrong_field_in(textwrap.dedent(report)) == "size is 'big': expected int"


def test_a_report_with_several_fields_names_none():
    """Each of them may be the one that is meant."""
    report = """
        Parser key "model":
          Errors:
            - Parser key "size":
                Expected a <class 'int'>. Got value: big
            - Parser key "name":
                Expected a <class 'str'>. Got value: 3
    """
    assert wrong_field_in(textwrap.dedent(report)) is None
