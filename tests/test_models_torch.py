"""VGG19, ResNet-110 and DenseNet-121 against PyTorch, where PyTorch is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("benchmarks.torch_models")

pytestmark = pytest.mark.slow


def relative(got, wanted):
    wanted = np.asarray(wanted)
    return np.linalg.norm(np.asarray(got) - wanted) / max(np.linalg.norm(wanted), 1e-30)


@pytest.mark.parametrize("name", ["lenet5", "vgg19", "resnet110", "densenet121"])
def test_training_and_evaluation_agree(name):
    torch.manual_seed(0)
    twin = torch_models.NETWORKS[name]()
    model = models.create(name, rngs=nnx.Rngs(0))
    models.load_torch(model, twin.state_dict())
    shape = (8, 28, 28, 1) if name == "lenet5" else (8, 32, 32, 3)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    labels = np.arange(8) % 10
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def run(params, statistics, x):
        def loss(params):
            trained = nnx.merge(graph, params, statistics)
            logits = trained(x)
            value = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
            return value.mean(), (logits, nnx.state(trained, nnx.BatchStat))

        (_, (logits, after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        evaluated = nnx.merge(graph, params, after)
        evaluated.eval()
        return logits, gradients, after, evaluated(x)

    compiled = jax.jit(run, compiler_options=models.compiler_options("cpu"))
    logits, gradients, after, evaluated = compiled(
        nnx.to_pure_dict(params), nnx.to_pure_dict(statistics), x
    )

    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    wanted = twin(images)
    torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels)).backward()
    assert relative(logits, wanted.detach()) < 1e-4
    got = models.to_torch(nnx.merge(graph, gradients, after))
    for key, value in twin.named_parameters():
        # A convolution's bias in front of batch norm has no gradient but rounding.
        if name == "vgg19" and key.startswith("features") and key.endswith("bias"):
            if value.grad.abs().max() < 1e-5:
                continue
        assert relative(got[key], value.grad) < 2e-3, key
    for key, value in twin.named_buffers():
        if not key.endswith("num_batches_tracked"):
            assert relative(got[key], value) < 1e-4, key
    twin.eval()
    with torch.no_grad():
        assert relative(evaluated, twin(images)) < 1e-4
