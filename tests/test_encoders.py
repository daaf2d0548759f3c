import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from models import encoders
from models.encoders import efficientnet_lite0, resnet101, vgg19
from pb_jax.data.pictures import decode
from pb_jax.errors import UserError

FROZEN = tuple(name for name in encoders.NAMES if name != "small")
RNGS = nnx.Rngs(0)


def picture():
    """A fixed uint8 (1, 224, 224, 3), made of whole numbers only."""
    i = np.arange(224)
    red = i[:, None] * 3 + i * 5
    green = i[:, None] * i // 7
    blue = (i[:, None] ** 2 + i**2) // 64
    return (np.stack([red, green, blue], -1)[None] % 256).astype(np.uint8)


# --- weights -------------------------------------------------------------------------------------


def shapes(name):
    """Name to shape of what a file must hold, written out anew."""
    return {"vgg19": vgg19_shapes, "resnet101": resnet101_shapes}.get(name, lite0_shapes)()


def vgg19_shapes():
    indices = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    widths = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    found = {}
    for index, inputs, outputs in zip(indices, widths[:-1], widths[1:], strict=True):
        found[f"features.{index}.weight"] = (outputs, inputs, 3, 3)
        found[f"features.{index}.bias"] = (outputs,)
    return found


def resnet101_shapes():
    found, inputs = {"conv1.weight": (64, 3, 7, 7)} | norm_shapes("bn1", 64), 64
    for stage, (repeats, inner) in enumerate([(3, 64), (4, 128), (23, 256), (3, 512)], 1):
        for repeat in range(repeats):
            block = f"layer{stage}.{repeat}"
            found[f"{block}.conv1.weight"] = (inner, inputs, 1, 1)
            found[f"{block}.conv2.weight"] = (inner, inner, 3, 3)
            found[f"{block}.conv3.weight"] = (4 * inner, inner, 1, 1)
            found |= norm_shapes(f"{block}.bn1", inner) | norm_shapes(f"{block}.bn2", inner)
            found |= norm_shapes(f"{block}.bn3", 4 * inner)
            if repeat == 0:
                found[f"{block}.downsample.0.weight"] = (4 * inner, inputs, 1, 1)
                found |= norm_shapes(f"{block}.downsample.1", 4 * inner)
            inputs = 4 * inner
    return found


def lite0_shapes():
    found = {"_conv_stem.weight": (3, 3, 3, 32)} | norm_shapes("_bn0", 32)
    for i, (size, _, expansion, inputs, outputs) in enumerate(lite0_blocks()):
        block, wide = f"_blocks.{i}.", inputs * expansion
        if expansion > 1:
            found[f"{block}_expand_conv.weight"] = (1, 1, inputs, wide)
            found |= norm_shapes(f"{block}_bn0", wide)
        found[f"{block}_depthwise_conv.weight"] = (size, size, 1, wide)
        found[f"{block}_project_conv.weight"] = (1, 1, wide, outputs)
        found |= norm_shapes(f"{block}_bn1", wide) | norm_shapes(f"{block}_bn2", outputs)
    found |= {"_conv_head.weight": (1, 1, 320, 1280)} | norm_shapes("_bn1", 1280)
    return found | {"_fc.weight": (1280, 1000), "_fc.bias": (1000,)}


def norm_shapes(name, channels):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts}


def lite0_blocks():
    """Kernel, stride, expansion, inputs and outputs of the sixteen blocks."""
    stages = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]
    widths = [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    taps = [
        (size, 1 if repeat else stride)
        for size, stride, repeats in stages
        for repeat in range(repeats)
    ]
    return [
        (size, stride, 6 if i else 1, widths[i], widths[i + 1])
        for i, (size, stride) in enumerate(taps)
    ]


@functools.cache
def random_weights(name, seed=19):
    """Kernels float16, the rest float32; drawn in the order of the names."""
    rng = np.random.default_rng(seed)
    found = {}
    for key, shape in sorted(shapes(name).items()):
        if len(shape) > 1:
            fan_in = math.prod(shape[1:] if name != "efficientnet_lite0" else shape[:-1])
            scale = np.float32((2 / fan_in) ** 0.5)
            found[key] = (rng.standard_normal(shape, np.float32) * scale).astype(np.float16)
        elif key.endswith("running_var"):
            found[key] = rng.random(shape, np.float32) + np.float32(0.5)
        elif key.endswith("weight"):
            found[key] = rng.random(shape, np.float32) * np.float32(0.4) + np.float32(0.3)
        else:
            found[key] = rng.standard_normal(shape, np.float32) * np.float32(0.1)
    return found


def create(name, weights=None, **options):
    return encoders.create(name, weights=weights, rngs=RNGS, **options)


@functools.cache
def small():
    return create("small")


def lite0(weights=None, **options):
    weights = random_weights("efficientnet_lite0") if weights is None else weights
    return efficientnet_lite0.EfficientNetLite0(weights, **options)


# --- EfficientNet-Lite0 against float64 numpy ----------------------------------------------------


def same_padded(x, size, stride):
    pads = [(0, 0)]
    for length in x.shape[1:3]:
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)])


def reference_lite0(weights, pixels):
    """The last block's output, the head's and the logits; batch norm is not folded."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        x = (x - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-3)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def windows(x, size, stride):
        around = same_padded(x, size, stride)
        view = np.lib.stride_tricks.sliding_window_view(around, (size, size), (1, 2))
        return view[:, ::stride, ::stride]

    def relu6(x):
        return np.minimum(np.maximum(x, 0), 6)

    x = (pixels.astype(np.float64) - 127) / 128
    x = np.tensordot(windows(x, 3, 2), w["_conv_stem.weight"], ((4, 5, 3), (0, 1, 2)))
    x = relu6(norm(x, "_bn0"))
    for i, (size, stride, expansion, inputs, outputs) in enumerate(lite0_blocks()):
        name, y = f"_blocks.{i}.", x
        if expansion > 1:
            y = relu6(norm(y @ w[f"{name}_expand_conv.weight"][0, 0], f"{name}_bn0"))
        taps, views = w[f"{name}_depthwise_conv.weight"], windows(y, size, stride)
        y = sum(views[..., a, b] * taps[a, b, 0] for a, b in np.ndindex(size, size))
        y = relu6(norm(y, f"{name}_bn1"))
        y = norm(y @ w[f"{name}_project_conv.weight"][0, 0], f"{name}_bn2")
        x = x + y if stride == 1 and inputs == outputs else y
    head = relu6(norm(x @ w["_conv_head.weight"][0, 0], "_bn1"))
    return x, head, head.mean((1, 2)) @ w["_fc.weight"] + w["_fc.bias"]


def test_lite0_against_float64():
    blocks, head, logits = reference_lite0(random_weights("efficientnet_lite0"), picture())
    assert head.std() > 0.05  # nothing died
    encoder = lite0()
    got = encoders.compiled(encoder)(picture())
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, head, atol=1e-5)
    np.testing.assert_allclose(encoder.logits(got), logits, atol=1e-4)
    got = encoders.compiled(lite0(head=False))(picture())
    np.testing.assert_allclose(got, blocks, atol=1e-5)


def test_lite0_without_head_has_no_logits():
    with pytest.raises(ValueError, match="head=True"):
        lite0(head=False).logits(jnp.zeros((1, 7, 7, 320)))


@pytest.mark.slow
def test_lite0_in_bfloat16():
    wanted = encoders.compiled(lite0())(picture())
    got = encoders.compiled(lite0(dtype=jnp.bfloat16))(picture())
    assert got.dtype == jnp.float32
    assert np.corrcoef(np.ravel(got), np.ravel(wanted))[0, 1] > 0.99
    assert not np.array_equal(got, wanted)


# --- EfficientNet-Lite0 with ImageNet's weights --------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(data_folder):
    return data_folder / "encoder" / "efficientnet_lite0_f16.npz"


@pytest.mark.real_data
def test_lite0_of_imagenet_on_a_pattern(imagenet):
    """Logits of another implementation (plain JAX, float64), recorded."""
    encoder = create("efficientnet_lite0", imagenet)
    logits = np.asarray(encoder.logits(encoders.compiled(encoder)(picture())))[0]
    wanted = {506: 9.24999, 417: 5.94451, 616: 5.42298, 723: 5.1028, 645: 5.07241}
    np.testing.assert_allclose(logits[list(wanted)], list(wanted.values()), atol=1e-3)
    assert list(np.argsort(-logits)[:5]) == list(wanted)


@pytest.mark.real_data
def test_lite0_of_imagenet_on_photographs(imagenet, data_folder):
    """What one sees there: a girl in a swing, killer whales that jump, a dog in a jacket."""
    seen = {
        "1561658940_a947f2446a.jpg": 843,  # swing
        "3030294889_78b2ccbe51.jpg": 148,  # killer whale
        "3436063693_15c8d377a2.jpg": 178,  # Weimaraner
    }
    folder = data_folder / "flickr8k" / "Flicker8k_Dataset"
    pixels = np.stack([decode((folder / name).read_bytes(), 224) for name in seen])
    encoder = create("efficientnet_lite0", imagenet)
    logits = np.asarray(encoder.logits(encoders.compiled(encoder)(pixels)))
    assert list(logits.argmax(1)) == list(seen.values())
    with np.load(imagenet) as weights:
        wanted = reference_lite0(dict(weights), pixels)[2]
    np.testing.assert_allclose(logits, wanted, atol=1e-3)


# --- VGG19 and ResNet-101 against torchvision ----------------------------------------------------

# Of torchvision 0.28 in float64, with `random_weights` and `noise`: the mean feature at the first
# seven positions of the third row, and the mean over positions of every eighth part's channel 5.
RECORDED = {
    "vgg19": (
        (32, 20_024_384),
        [0.922674, 1.281509, 1.389295, 1.483711, 1.460179, 1.455176, 1.449313],
        [2.40389, 3.256454, 1.809664, 1.910251, 0.0, 0.045143, 0.078322, 5.201266],
    ),
    "resnet101": (
        (520, 42_605_504),
        [0.294363, 0.333568, 0.335839, 0.334436, 0.33437, 0.33583, 0.325328],
        [1.194574, 0.270337, 0.157952, 0.000943, 0.435095, 0.130888, 0.006499, 0.027652],
    ),
}


def noise():
    return np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)


@pytest.mark.parametrize("name", list(RECORDED))
def test_torchvision_networks(name):
    weights = random_weights(name)
    sizes, positions, channels = RECORDED[name]
    assert (len(weights), sum(value.size for value in weights.values())) == sizes
    kind = {"vgg19": vgg19.VGG19, "resnet101": resnet101.ResNet101}[name]
    encoder = kind(weights)
    got = np.asarray(encoders.compiled(encoder)(noise()))[0]
    assert got.shape == (*encoder.grid, encoder.channels)
    np.testing.assert_allclose(got[2, :7].mean(-1), positions, atol=1e-4)
    every = encoder.channels // 8
    np.testing.assert_allclose(got.mean((0, 1))[5::every], channels, atol=1e-4)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "safetensors", "mapping", "float32"])
def test_every_source_of_weights(kind, tmp_path):
    weights, path = random_weights("efficientnet_lite0"), tmp_path / f"weights.{kind}"
    if kind == "mapping":
        path = weights
    elif kind == "safetensors":
        save_file(weights, path)
    else:
        path = tmp_path / "weights.npz"
        if kind == "float32":
            weights = {name: value.astype(np.float32) for name, value in weights.items()}
        np.savez(path, **weights)
    assert create("efficientnet_lite0", path).fingerprint() == lite0().fingerprint()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet_lite0", "_conv_stem.weight"),
        ("vgg19", "features.0.weight"),
        ("resnet101", "layer1.0.bn1.bias"),
    ],
)
def test_frozen_encoders_need_weights(name, said):
    with pytest.raises(UserError, match=r"encoder.weights") as error:
        create(name)
    assert said in str(error.value)
    assert ".safetensors" in str(error.value)


@pytest.mark.parametrize("name", FROZEN)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(UserError, match="no such file") as error:
        create(name, tmp_path / "none.npz")
    assert "none.npz" in str(error.value)


def test_weights_of_another_network_are_told(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(UserError) as error:
        create("vgg19", path)
    message = str(error.value)
    assert str(path) in message
    assert "do not fit vgg19" in message
    assert "missing: features.0.bias" in message
    assert "unexpected: conv1.weight" in message


def test_kernels_in_another_order_are_told():
    weights = dict(random_weights("efficientnet_lite0"))
    weights["_conv_stem.weight"] = weights["_conv_stem.weight"].transpose(3, 2, 0, 1)
    with pytest.raises(UserError, match=r"_conv_stem.weight has \(32, 3, 3, 3\) instead of"):
        lite0(weights)


@pytest.mark.parametrize(
    ("name", "entry"), [("vgg19", "classifier.0.weight"), ("resnet101", "fc.bias")]
)
def test_the_classifier_is_ignored(name, entry, tmp_path):
    """What else is missing is told, the classifier is not unexpected."""
    path = tmp_path / "weights.npz"
    np.savez(path, **{entry: np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="missing") as error:
        create(name, path)
    assert "unexpected" not in str(error.value)


# --- the interface -------------------------------------------------------------------------------


def test_names_and_wrong_arguments():
    assert encoders.NAMES == ("small", "efficientnet_lite0", "vgg19", "resnet101")
    with pytest.raises(UserError, match="did you mean 'resnet101'"):
        create("resnet-101")
    with pytest.raises(UserError, match="takes no weights"):
        create("small", "weights.npz")
    with pytest.raises(ValueError, match="dtype"):
        create("small", dtype=jnp.float16)
    with pytest.raises(ValueError, match="head=False"):
        create("small", head=False)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 47, 48, 3), np.uint8),
        np.zeros((2, 48, 48, 1), np.uint8),
        np.zeros((48, 48, 3), np.uint8),
        np.zeros((2, 48, 48, 3), np.float32),
    ],
    ids=["size", "channels", "rank", "dtype"],
)
def test_images_that_do_not_fit(images):
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, 48, 48, 3\)"):
        small()(jnp.asarray(images))


def test_nothing_of_a_frozen_encoder_trains():
    assert not jax.tree.leaves(nnx.state(lite0(), (nnx.Param, nnx.BatchStat)))
    assert lite0().frozen
    assert not small().frozen


def test_fingerprints():
    weights = dict(random_weights("efficientnet_lite0"))
    assert lite0().fingerprint() == lite0(weights).fingerprint()
    weights["_blocks.7._bn1.bias"] = weights["_blocks.7._bn1.bias"] + np.float32(0.001)
    prints = {
        lite0().fingerprint(),
        lite0(weights).fingerprint(),
        lite0(head=False).fingerprint(),
        lite0(dtype=jnp.bfloat16).fingerprint(),
        lite0(precision="highest").fingerprint(),
        small().fingerprint(),
        encoders.create("small", rngs=nnx.Rngs(1)).fingerprint(),
    }
    assert len(prints) == 7
    assert all(len(value) == 64 for value in prints)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_small_trains_along(dtype):
    encoder = encoders.create("small", rngs=nnx.Rngs(0), dtype=dtype)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8))
    target = jax.random.normal(jax.random.key(0), (4, *encoder.grid, encoder.channels))

    @nnx.jit
    def gradients(encoder):
        return nnx.value_and_grad(lambda model: jnp.mean(model(pixels) * target))(encoder)

    value, grads = gradients(encoder)
    assert value.dtype == jnp.float32
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == 12
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in leaves)
    assert np.any(encoder.norms[0].mean[...])  # statistics are kept


def test_compiled_uses_running_statistics_and_a_copy():
    encoder = encoders.create("small", rngs=nnx.Rngs(0))
    encode = encoders.compiled(encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    one, three = encode(pixels[:1]), encode(pixels)
    np.testing.assert_allclose(one[0], three[0], atol=1e-5)
    assert not encoder.norms[0].use_running_average
    assert not np.any(encoder.norms[0].mean[...])
