import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pb_jax.training.modules import functional
from tests.tiny_training import Tiny


class Zoo(nnx.Module):
    def __init__(self, rngs):
        self.zebra = nnx.Linear(3, 2, rngs=rngs)
        self.ants = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])

    def __call__(self, x):
        x = self.zebra(x)
        for ant in self.ants:
            x = ant(x)
        return x


def test_params_come_in_the_order_of_definition():
    names = list(functional(Zoo(nnx.Rngs(0))).params)
    assert names[:3] == ["zebra.kernel", "zebra.bias", "ants.0.kernel"]
    assert names[-1] == "ants.10.bias"  # not after ants.1


def test_apply_is_the_module():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 1))
    model, same = Tiny(nnx.Rngs(0)), Tiny(nnx.Rngs(0))
    apply, params, state, _ = functional(model)
    assert {"norm.mean", "norm.var", "drop.rngs.key", "drop.rngs.count"} <= state.keys()
    for _ in range(2):  # the second time with moved statistics and another dropout mask
        same.train()
        outputs, state = jax.jit(lambda p, s: apply(p, s, x, train=True))(params, state)
        np.testing.assert_allclose(outputs, same(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["norm.mean"], same.norm.mean[...], rtol=1e-6)
    assert int(state["drop.rngs.count"]) == 2
    same.eval()
    outputs, after = apply(params, state, x, train=False)
    np.testing.assert_allclose(outputs, same(x), rtol=1e-5, atol=1e-6)
    assert after is state


def test_the_module_is_taken_whole():
    model = Tiny(nnx.Rngs(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert sum(jnp.size(leaf) for leaf in functional(model).params.values()) == total
