"""Numbers of held-out captions beside their scores, by hand."""

import numpy as np

from balcap_jax.evidence.measures import measures_of


def row(assertions, rho):
    told = [{"verified": v, "pointable": p} for v, p in assertions]
    return {"verdict": {"assertions": told}, "rho": rho}


def test_by_hand():
    rows = [
        row([(True, True), (False, True), (True, False)], 0.4),
        row([(True, True)], 1.0),
        {"verdict": None, "rho": 2.5},
    ]
    found = measures_of(rows)
    # Four statements of two judged captions; one is false and pointable, one points at nothing.
    assert found["assertions"] == 2.0
    assert found["invented"] == 0.5
    assert found["commentary"] == 25.0
    np.testing.assert_allclose([found["rho_low"], found["rho_high"]], [100 / 3, 100 / 3])


def test_of_nothing_is_nan():
    assert all(np.isnan(value) for value in measures_of([]).values())
