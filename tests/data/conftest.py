import pytest

from ssjax.data import tasks


@pytest.fixture(autouse=True)
def no_own_tasks(monkeypatch):
    """Names that a test registers are unknown to the next one."""
    monkeypatch.setattr(tasks, "_OWN", {})
