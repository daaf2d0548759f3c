"""VGG19, ResNet-110 and DenseNet-121 against PyTorch, where PyTorch is installed."""

import copy

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

    def pytorch(dtype):
        network = copy.deepcopy(twin).to(dtype)
        images = torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype)
        trained = network(images)
        torch.nn.functional.cross_entropy(trained, torch.from_numpy(labels)).backward()
        found = {"logits": trained.detach()}
        found |= {f"gradient {key}": value.grad for key, value in network.named_parameters()}
        found |= {f"after {key}": value for key, value in network.named_buffers()}
        network.eval()
        with torch.no_grad():
            found["evaluated"] = network(images)
        return {key: np.asarray(value, np.float64) for key, value in found.items()}

    got = {"logits": logits, "evaluated": evaluated}
    trees = {
        "gradient": nnx.merge(graph, gradients, statistics),
        "after": nnx.merge(graph, params, after),
    }
    for kind, tree in trees.items():
        got |= {f"{kind} {key}": value for key, value in models.to_torch(tree).items()}

    # Deep networks amplify rounding, so the measure is how far PyTorch's float32 is from float64.
    exact, rounded = pytorch(torch.float64), pytorch(torch.float32)
    for key, wanted in exact.items():
        if key.endswith("num_batches_tracked"):
            continue
        scale = np.linalg.norm(wanted) + 1e-6
        error, allowed = (
            np.linalg.norm(np.asarray(v[key]) - wanted) / scale for v in (got, rounded)
        )
        assert error < 3 * allowed + 2e-5, key
