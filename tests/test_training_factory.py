import jax.numpy as jnp
import numpy as np
import pytest

import pb_jax
from pb_jax.training import make_freezing, make_rule, resolve

GRADS = {"kernel": jnp.array([[9e-3, 1e-3], [1e-4, 3e-3]]), "bias": jnp.array([1e-3, 4e-3])}


@pytest.mark.parametrize(
    ("granularity", "kernel", "bias"),
    [
        ("element", [[True, False], [False, True]], [False, True]),
        ("channel", [[True, False], [True, False]], [False, True]),
        ("leaf", [[True, True], [True, True]], [False, False]),
    ],
)
def test_the_rule_judges_what_granularity_says(granularity, kernel, bias):
    freeze = {"rule": "fixed_threshold", "threshold": 2.6, "granularity": granularity}
    config = resolve({"freeze": freeze})
    freezing = make_freezing(config, 10)
    for rule in (make_rule(config), freezing.rule):
        mask = rule(GRADS).mask
        np.testing.assert_array_equal(mask["kernel"], kernel)
        np.testing.assert_array_equal(mask["bias"], bias)


def test_full_training_has_no_freezing():
    assert make_freezing(resolve({"freeze": {"rule": "none", "granularity": "leaf"}}), 10) is None


def test_shares_reach_the_rule():
    config = resolve({"freeze": {"rule": "random", "frozen": 0.5, "granularity": "channel"}})
    mask = make_rule(config)({"kernel": jnp.zeros((6, 10))}).mask
    assert pb_jax.mask_summary(mask).frozen == 30
