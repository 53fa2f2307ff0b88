import pytest

from ssjax.data.tasks import get_task
from ssjax.errors import UserError


def test_dialogsum():
    task = get_task("dialogsum")
    record = {"dialogue": "#Person1#: Hi.\n#Person2#: Ho.", "summaries": ("They greet.", "Hi.")}
    assert task.prompt(record) == "#Person1#: Hi.\n#Person2#: Ho.\n\nSummary:"
    assert task.references(record) == ("They greet.", "Hi.")
    assert "#Person1#" in task.symbols


def test_e2e_nlg():
    task = get_task("e2e_nlg")
    record = {"mr": "name[X], area[riverside]", "references": ("X is by the river.",)}
    assert task.prompt(record) == "name[X], area[riverside]\n\nText:"
    assert task.references(record) == ("X is by the river.",)


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(
        UserError,
        match="^unknown task 'samsum': choose one of chat, dialogsum, e2e_nlg, pairs, sql_context$",
    ):
        get_task("samsum")
