"""The keys of an experiment's configuration: defaults, what is allowed, and what they mean.

Everything about a key is in `KEYS` and `CAPTIONER_KEYS`. A key whose default is None takes its
value from the optimizer or rule that it belongs to; `resolve` fills these in, so that `config.json`
holds every number that a run has used.
"""

import difflib
import inspect
import ipaddress
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pb_jax
from pb_jax.errors import UserError
from pb_jax.granularity import GRANULARITIES
from pb_jax.training import optimizers

RULES: tuple[str, ...] = (
    "kde_otsu",
    "none",
    "fixed_threshold",
    "quantile",
    "mean_threshold",
    "random",
    "weight_magnitude",
)
"""The freezing rules by name; each is the function of this name in `pb_jax`."""


class Key(NamedTuple):
    """One key: its default, its types, a check with its wording, and a line of help."""

    default: Any
    types: tuple[type, ...]
    help: str
    check: Callable[[Any], bool] | None = None
    allowed: str = ""


_MOST = 2**31 - 1  # of steps and entries: JAX counts in int32


def _whole(default: int | None, least: int, help_: str, most: int = _MOST) -> Key:
    types = (int,) if default is not None else (int, type(None))
    allowed = f"a whole number, at least {least}"
    if most != _MOST:
        allowed += f" and at most {most}"
    return Key(default, types, help_, lambda v: least <= v <= most, allowed)


def _number(default: float | None, help_: str, check: Callable[[float], bool], allowed: str) -> Key:
    types = (int, float) if default is not None else (int, float, type(None))
    return Key(default, types, help_, lambda v: _finite(v) and check(v), allowed)


def _finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # math.isfinite cannot take whole numbers beyond


def _choice(default: str | None, values: Sequence[str], help_: str) -> Key:
    types = (str,) if default is not None else (str, type(None))
    return Key(default, types, help_, lambda v: v in values, "one of " + ", ".join(values))


def _text(default: str | None, help_: str) -> Key:
    types = (str,) if default is not None else (str, type(None))
    return Key(default, types, help_, lambda v: bool(v), "not empty")


def _is_address(text: str) -> bool:
    """Whether it is HOST:PORT; an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
    elif not re.fullmatch(r"[\w.-]+", host):
        return False
    return re.fullmatch(r"[0-9]{1,5}", port) is not None and 1 <= int(port) <= 65_535


_POSITIVE: tuple[Callable[[float], bool], str] = (lambda v: v > 0, "a number above 0")
_SHARE: tuple[Callable[[float], bool], str] = (lambda v: 0 <= v < 1, "a number from 0 to below 1")

KEYS: Mapping[str, Key] = {
    "seed": _whole(0, 0, "of initial weights, order of batches, random masks", most=2**32 - 1),
    "epochs": _whole(110, 1, "epochs in all; a finished run may be given more"),
    "batch_size": _whole(100, 1, "examples a step; the last, smaller batch is left out"),
    "model.name": _text("lenet5", "the network, see models/"),
    "model.dtype": _choice("float32", ("float32", "bfloat16"), "of the computation"),
    "model.matmul_precision": _choice(
        None, ("default", "high", "highest"), "of products and convolutions; None: JAX's"
    ),
    "model.weights": _text(None, "PyTorch weights to start from (.safetensors or .npz)"),
    "optimizer.name": _choice("amsgrad_torch", optimizers.NAMES, "amsgrad is optax's"),
    "optimizer.learning_rate": _number(1e-3, "also α in x = abs(gradient) / α", *_POSITIVE),
    "optimizer.boundaries": Key(
        (),
        (tuple, list),
        "the rate changes after so many full epochs, as PyTorch's MultiStepLR",
        lambda v: (
            all(isinstance(e, int) and not isinstance(e, bool) and 0 < e <= _MOST for e in v)
            and list(v) == sorted(set(v))
        ),
        "increasing whole numbers above 0, such as (40, 80)",
    ),
    "optimizer.decay": _number(0.1, "factor on the rate at each boundary", *_POSITIVE),
    "optimizer.patience": _whole(
        None, 1, "the rate decays after so many epochs without a better score; None: never"
    ),
    "optimizer.stop_patience": _whole(
        None, 1, "training ends after so many epochs without a better score; None: never"
    ),
    "optimizer.b1": _number(None, "decay of the first moment", *_SHARE),
    "optimizer.b2": _number(None, "decay of the second moment", *_SHARE),
    "optimizer.eps": _number(None, "added to the denominator", *_POSITIVE),
    "optimizer.momentum": _number(None, "of sgd", *_SHARE),
    "optimizer.nesterov": Key(None, (bool, type(None)), "Nesterov's momentum, of sgd"),
    "optimizer.weight_decay": _number(None, "of sgd, adamw, lion", lambda v: v >= 0, "0 or more"),
    "freeze.rule": _choice("kde_otsu", RULES, "what freezes; none: full training"),
    "freeze.start_epoch": _whole(3, 1, "its first batch makes the mask and is masked already"),
    "freeze.refresh_epochs": _whole(None, 1, "epochs between new masks; None: one mask"),
    "freeze.stop_epoch": _whole(None, 2, "full training again from this epoch on; None: never"),
    "freeze.mode": _choice(
        "updates",
        ("updates", "gradients"),
        "updates: frozen weights do not move; gradients: the paper's appendix, momentum goes on",
    ),
    "freeze.granularity": _choice(
        "element",
        GRANULARITIES,
        "what is judged: single weights, or output channels or leaves by their mean magnitude",
    ),
    "freeze.compact": Key(
        None,
        (bool, type(None)),
        "optimizer state for what trains only, after the mask; None: where it pays",
        allowed="true or false",
    ),
    "freeze.batches": _whole(1, 1, "batches over which abs(gradient) is averaged for a mask"),
    "freeze.batch_size": _whole(None, 1, "examples in each of them; None: batch_size"),
    "freeze.coverage": _number(
        None, "of kde_otsu: the region's share", lambda v: 0 < v <= 1, "above 0, at most 1"
    ),
    "freeze.bandwidth": Key(
        None,
        (str, int, float, type(None)),
        "of kde_otsu: scott, silverman or a number in units of x",
        lambda v: v in ("scott", "silverman") if isinstance(v, str) else _finite(v) and v > 0,
        "scott, silverman or a number above 0",
    ),
    "freeze.bins": _whole(None, 2, "of kde_otsu: sub-ranges of the region", most=65_536),
    "freeze.scale": _number(None, "of kde_otsu: factor on the threshold", *_POSITIVE),
    "freeze.scope": _choice(None, ("global", "leaf"), "one selection for all, or one a leaf"),
    "freeze.threshold": _number(None, "of fixed_threshold: t, in units of x", *_POSITIVE),
    "freeze.frozen": _number(None, "of quantile, random, weight_magnitude: the share", *_SHARE),
    "freeze.largest": Key(
        None, (bool, type(None)), "of quantile: freeze the largest gradients, not the smallest"
    ),
    "dataset.name": _text("mnist", "the data, see pb_jax.data"),
    "dataset.data_dir": _text(None, "where prepared data is kept; None: TFDS's folder"),
    "dataset.source_dir": _text(None, "folder with the original files; None: download"),
    "dataset.limit_train": _whole(None, 1, "use only so many training examples"),
    "dataset.limit_eval": _whole(None, 1, "use only so many test examples"),
    "checkpoint.every_epochs": _whole(1, 1, "save the latest; the best is saved at once"),
    "checkpoint.keep": _whole(2, 1, "latest checkpoints to keep, besides the best"),
    "mesh.data": _whole(1, 1, "devices that share a batch and all have all parameters"),
    "mesh.fsdp": _whole(1, 1, "times so many that share parameters and optimizer state too"),
    "distributed": Key(
        False, (bool,), "several processes, one a host, each started with the same command"
    ),
    "processes.coordinator": Key(
        None,
        (str, type(None)),
        "HOST:PORT of the first process; None: JAX finds it",
        _is_address,
        "HOST:PORT, with a port from 1 to 65535 and an IPv6 address in brackets",
    ),
    "processes.count": _whole(None, 1, "how many; None: as SLURM, Open MPI or a cloud TPU say"),
    "processes.index": _whole(None, 0, "which of them this is, from 0; None: the same"),
}
"""The keys of every experiment."""

CAPTIONER = "captioner"
"""The model whose experiments have `CAPTIONER_KEYS` too."""

CAPTIONER_KEYS: Mapping[str, Key] = {
    "encoder.name": _text("small", "what looks at the pictures, see models/encoders/"),
    "encoder.weights": _text(None, "its weights (.safetensors or .npz); small trains along"),
    "captioner.hidden": _whole(512, 1, "size of the LSTM"),
    "captioner.embedding": _whole(512, 1, "size of the words' vectors"),
    "captioner.attention": _whole(512, 1, "size of the attention's hidden layer"),
    "captioner.dropout": _number(0.5, "in front of the output layer", *_SHARE),
    "captioner.regularisation": _number(
        1.0, "doubly stochastic: each position is to be looked at", lambda v: v >= 0, "0 or more"
    ),
    "captioner.min_count": _whole(5, 1, "how often a word must occur in training to be known"),
    "generation.beam": _whole(3, 1, "captions kept by the search; 1: greedy"),
    "generation.max_length": _whole(30, 1, "words in a caption at most"),
    "generation.length_penalty": _number(
        0.0, "scores are divided by length to this power", lambda v: v >= 0, "0 or more"
    ),
}
"""The further keys of a captioner's experiment."""


def keys_of(model: Any) -> Mapping[str, Key]:
    """The keys of an experiment with this `model.name`."""
    return {**KEYS, **CAPTIONER_KEYS} if model == CAPTIONER else KEYS


def default_config(model: str = "lenet5") -> Any:
    """A locked `ConfigDict` with every key at its default.

    Args:
        model: the network's name, which is the value of `model.name`.

    Example:
        >>> config = default_config()
        >>> config.batch_size, config.freeze.rule
        (100, 'kde_otsu')
    """
    from ml_collections import ConfigDict, config_dict

    flat = {
        # An untyped placeholder lets a key go from None to its value and back.
        name: config_dict.placeholder(object) if key.default is None else key.default
        for name, key in keys_of(model).items()
    }
    config = ConfigDict(nest(flat | {"model.name": model}))
    return config.lock()


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{"freeze": {"rule": ...}}` as `{"freeze.rule": ...}`."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, "to_dict"):
            flat |= {f"{name}.{key}": item for key, item in flatten(value).items()}
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        node = nested
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def check_known(
    name: str, known: Iterable[str] = (*KEYS, *CAPTIONER_KEYS), what: str = "config key"
) -> None:
    """Raise a `UserError` with a suggestion unless `name` is one of `known`.

    Example:
        >>> check_known("optimizer.learningrate")
        Traceback (most recent call last):
        ...
        pb_jax.errors.UserError: unknown config key 'optimizer.learningrate'; did you mean \
'optimizer.learning_rate'?
    """
    known = tuple(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near and "." in name:  # a right name in a wrong group: freeze.learning_rate
        near = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    if near:
        raise UserError(f"unknown {what} {name!r}; did you mean {near[0]!r}?")
    raise UserError(f"unknown {what} {name!r}; known: {', '.join(known)}")


def rule_parameters(rule: str) -> dict[str, Any]:
    """The config keys (without `freeze.`) that a rule takes, and the defaults they have there.

    A default of `inspect.Parameter.empty` means that the rule cannot do without the key.

    Example:
        >>> rule_parameters("kde_otsu")["bins"]
        300
        >>> list(rule_parameters("fixed_threshold"))
        ['threshold']
    """
    names = {"t": "threshold"}
    signature = inspect.signature(getattr(pb_jax, rule)).parameters
    return {
        names.get(name, name): parameter.default
        for name, parameter in signature.items()
        if name != "learning_rate"
    }


_RULE_KEYS = ("coverage", "bandwidth", "bins", "scale", "scope", "threshold", "frozen", "largest")
_OPTIMIZER_KEYS = ("b1", "b2", "eps", "momentum", "nesterov", "weight_decay")


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration and fill in what its optimizer and rule leave to their defaults.

    Args:
        config: a `ConfigDict` or nested mapping with the keys of `KEYS`; missing ones are defaults.

    Returns:
        A nested dict with every key.

    Raises:
        UserError: an unknown key, a wrong type or value, keys that contradict each other, or a
            parameter that the chosen rule or optimizer does not take.

    Example:
        >>> resolve({"epochs": 2})["freeze"]["bins"]
        300
        >>> resolve({"freeze": {"mode": "foo"}})
        Traceback (most recent call last):
        ...
        pb_jax.errors.UserError: freeze.mode='foo' is not allowed: one of updates, gradients
    """
    given = flatten(config)
    keys = keys_of(given.get("model.name"))
    for name in given:
        check_known(name)
        if name not in keys:
            raise UserError(f"{name} has no effect: it is of experiments with a {CAPTIONER}")
    flat = {name: given.get(name, key.default) for name, key in keys.items()}
    for name, key in keys.items():
        _check_value(name, key, flat[name])
    _check_epochs(flat)
    _check_schedule(flat)
    _check_devices(flat)
    if flat["freeze.compact"] and flat["freeze.mode"] != "updates":
        raise UserError(
            f"freeze.compact=True does not go with freeze.mode={flat['freeze.mode']!r}: there the "
            "momentum of frozen weights goes on"
        )
    rule, optimizer = flat["freeze.rule"], flat["optimizer.name"]
    taken = rule_parameters(rule)
    _fill(flat, "freeze", _RULE_KEYS, taken, f"rule {rule!r}")
    if flat["freeze.granularity"] == flat["freeze.scope"] == "leaf":
        raise UserError(
            "freeze.granularity='leaf' leaves nothing to choose within a leaf: "
            "set freeze.scope='global', which compares the leaves"
        )
    _fill(flat, "optimizer", _OPTIMIZER_KEYS, optimizers.parameters(optimizer), repr(optimizer))
    return nest(flat)


def _check_value(name: str, key: Key, value: Any) -> None:
    wrong_bool = isinstance(value, bool) and bool not in key.types
    if wrong_bool or not isinstance(value, key.types):
        kinds = key.allowed or " or ".join(t.__name__ for t in key.types if t is not type(None))
        optional = ", or None" if type(None) in key.types else ""
        raise UserError(f"{name}={value!r:.200} is not allowed: {kinds}{optional}")
    if value is not None and key.check is not None and not key.check(value):
        raise UserError(f"{name}={value!r:.200} is not allowed: {key.allowed}")


def _check_schedule(flat: Mapping[str, Any]) -> None:
    if flat["optimizer.patience"] is None and flat["optimizer.stop_patience"] is not None:
        raise UserError("optimizer.stop_patience has no effect without optimizer.patience")
    if flat["optimizer.patience"] is not None and flat["optimizer.boundaries"]:
        raise UserError(
            "optimizer.boundaries and optimizer.patience both set the learning rate: give one"
        )


def _check_devices(flat: Mapping[str, Any]) -> None:
    devices = flat["mesh.data"] * flat["mesh.fsdp"]
    for name in ("batch_size", "freeze.batch_size"):
        if flat[name] is not None:
            check_batch(name, flat[name], devices)
    if flat["freeze.compact"] and flat["mesh.fsdp"] > 1:
        raise UserError(
            f"freeze.compact=True does not go with mesh.fsdp={flat['mesh.fsdp']}: optimizer state "
            "that is split over devices stays dense"
        )
    given = [name for name in flat if name.startswith("processes.") and flat[name] is not None]
    if given and not flat["distributed"]:
        raise UserError(f"{given[0]} has no effect without distributed=True")


def check_batch(name: str, batch_size: int, devices: int) -> None:
    """Raise a `UserError` unless a batch can be split evenly over the devices.

    Example:
        >>> check_batch("batch_size", 100, 8)
        Traceback (most recent call last):
        ...
        pb_jax.errors.UserError: batch_size=100 cannot be split over the 8 devices of the mesh: \
96 and 104 can
    """
    if batch_size % devices:
        below = batch_size // devices * devices
        able = " and ".join(str(size) for size in (below, below + devices) if size)
        raise UserError(
            f"{name}={batch_size} cannot be split over the {devices} devices of the mesh: "
            f"{able} can"
        )


def _check_epochs(flat: Mapping[str, Any]) -> None:
    start, stop = flat["freeze.start_epoch"], flat["freeze.stop_epoch"]
    if stop is not None and stop <= start:
        raise UserError(
            f"freeze.stop_epoch={stop} must come after freeze.start_epoch={start}: "
            "full training is resumed after the mask was made"
        )


def _fill(
    flat: dict[str, Any], group: str, keys: Iterable[str], taken: Mapping[str, Any], who: str
) -> None:
    for key in keys:
        name = f"{group}.{key}"
        if key not in taken and flat[name] is not None:
            does = f"it takes {', '.join(taken)}" if taken else "it takes no parameters"
            raise UserError(f"{name}={flat[name]!r} has no effect: {who} does not take it; {does}")
        if key in taken and flat[name] is None:
            if taken[key] is inspect.Parameter.empty:
                raise UserError(f"{who} needs {name}; set it with --config.{name}=VALUE")
            flat[name] = taken[key]


def describe_keys() -> str:
    """All keys with their defaults and help, for `--help`."""
    further = f"\nOf captioners (model.name={CAPTIONER}) only:"
    return "\n".join([*_described(KEYS), further, *_described(CAPTIONER_KEYS)])


def _described(keys: Mapping[str, Key]) -> list[str]:
    lines = []
    for name, key in keys.items():
        default = "-" if key.default is None else str(key.default)
        lines.append(f"  {name:<25} {default:<14} {key.help}")
        if key.allowed.startswith("one of "):
            lines.append(f"      {key.allowed}")
    return lines
