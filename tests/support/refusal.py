"""What is said when a call is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refusal(call: Callable[[], Any], *errors: type[Exception]) -> str:
    """The whole message with which `call` raises; its class is exactly one of `errors`."""
    with pytest.raises(errors) as raised:
        call()
    assert raised.type in errors
    return str(raised.value)
