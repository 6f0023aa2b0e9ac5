import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave training out unless `-m` asks for it: it takes minutes, and no other check needs it done again."""
    if "train" in config.getoption("markexpr"):
        return
    training = [item for item in items if item.get_closest_marker("train")]
    if training:
        config.hook.pytest_deselected(items=training)
        items[:] = [item for item in items if item not in training]
