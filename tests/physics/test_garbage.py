"""The search for garbage pauses and goes on."""

from __future__ import annotations

import gc

import pytest

from simulator.physics.garbage import no_garbage


def test_the_search_pauses_and_goes_on_after_an_error_too() -> None:
    """Whatever happens inside, the state from before comes back."""
    assert gc.isenabled()
    with no_garbage():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_garbage():
        1 / 0  # noqa: B018
    assert gc.isenabled()
    gc.disable()
    try:
        with no_garbage():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
