"""What a study varies, as text: rules with parameters, and grids of config keys."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pb_jax.errors import UserError
from pb_jax.training.config import RULES, check_known, rule_parameters

HOW_FROZEN = tuple(
    f"freeze.{name}"
    for name in ("granularity", "mode", "refresh_epochs", "start_epoch", "stop_epoch")
)
"""The config keys that say when and how a mask freezes, whatever rule has made it."""
_ELSEWHERE = {"seed": "--seeds", "freeze.rule": "--rules"}
OF_RULES: frozenset[str] = frozenset(
    f"freeze.{name}" for rule in RULES for name in rule_parameters(rule)
)
"""The config keys that some rules take and others do not."""


class Choice(NamedTuple):
    """A rule of the study.

    Attributes:
        label: what tables and folders call it.
        rule: its name, one of `pb_jax.training.config.RULES`.
        settings: config keys that it sets, such as `{"freeze.frozen": 0.9}`.
        share_of: label of the choice whose frozen share it takes, seed by seed; None: its own.
    """

    label: str
    rule: str
    settings: Mapping[str, Any]
    share_of: str | None = None


def parse_rules(text: str) -> tuple[Choice, ...]:
    """Read a list of rules: `RULE[@LABEL][:KEY=VALUE,...]`, separated by commas.

    A key is one of `freeze.*`, without the prefix, or `label`. `@LABEL` freezes the share that
    another rule of the list froze in the run with the same seed: the same number of weights,
    chosen otherwise, but frozen at the same time and in the same way (`HOW_FROZEN`) unless it has
    its own. A rule that needs a share and is given none takes that of the first rule of the list
    that finds its own, `kde_otsu` before others.

    Raises:
        UserError: saying which part is wrong and what there is.

    Example:
        >>> for choice in parse_rules("none,kde_otsu,random,quantile:frozen=0.9,largest=true"):
        ...     print(choice.label, dict(choice.settings), choice.share_of)
        none {} None
        kde_otsu {} None
        random {} kde_otsu
        quantile(frozen=0.9,largest=true) {'freeze.frozen': 0.9, 'freeze.largest': True} None
    """
    choices = [_choice(part) for part in _parts(text)]
    labels = [choice.label for choice in choices]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(
            f"--rules names {repeated[0]!r} twice; tell them apart, as in "
            f"{repeated[0].partition('(')[0]}:label=NAME"
        )
    return tuple(_with_share(choice, choices) for choice in choices)


def _parts(text: str) -> list[str]:
    """The rules: a comma before `KEY=` belongs to the rule before it."""
    parts: list[str] = []
    for piece in text.split(","):
        key, equals, _ = piece.partition("=")
        if equals and parts and ":" not in key and "@" not in key:
            parts[-1] += "," + piece
        else:
            parts.append(piece)
    return [part.strip() for part in parts if part.strip()]


def _choice(text: str) -> Choice:
    head, _, tail = text.partition(":")
    rule, at, share_of = head.strip().partition("@")
    check_known(rule, RULES, "rule")
    given: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in tail.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"{item!r} in --rules is no KEY=VALUE (of {text!r})")
        if key != "label":
            check_known(f"freeze.{key}")
        given[key] = value.strip()
    label = given.pop("label", "")
    settings = {f"freeze.{key}": parse_value(value) for key, value in given.items()}
    if "freeze.rule" in settings:
        raise UserError(f"{text!r} in --rules names its rule twice")
    if at and "freeze.frozen" in settings:
        raise UserError(f"{text!r} in --rules has two shares: @{share_of} and frozen=")
    if at and "frozen" not in rule_parameters(rule):
        raise UserError(f"{text!r} in --rules: {rule} finds its share itself, @ has no effect")
    listed = ",".join(f"{key}={value}" for key, value in given.items())
    return Choice(
        label or (f"{head.strip()}({listed})" if listed else head.strip()),
        rule,
        settings,
        share_of if at else None,
    )


def _with_share(choice: Choice, choices: Sequence[Choice]) -> Choice:
    """The choice with the label of the rule whose share it takes, where it takes one."""
    if choice.share_of is None and (
        "frozen" not in rule_parameters(choice.rule) or "freeze.frozen" in choice.settings
    ):
        return choice
    finders = [c for c in choices if c.rule != "none" and "frozen" not in rule_parameters(c.rule)]
    if choice.share_of is not None:
        check_known(choice.share_of, [c.label for c in choices if c != choice], "rule after @")
        source = next(c for c in choices if c.label == choice.share_of)
        if source not in finders:
            raise UserError(
                f"{choice.label!r} in --rules cannot take the share of {source.label!r}, "
                "which finds none itself"
            )
    elif finders:
        source = min(finders, key=lambda c: c.rule != "kde_otsu")
    else:
        return choice  # the configuration may have it
    same = {key: source.settings[key] for key in HOW_FROZEN if key in source.settings}
    return choice._replace(share_of=source.label, settings={**same, **choice.settings})


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read `KEY=VALUE,VALUE,...` for each of `texts`.

    Raises:
        UserError: an unknown key, a value twice, or a key that is varied by another flag.

    Example:
        >>> parse_grid(["freeze.coverage=0.9,0.95", "optimizer.boundaries=(), (40, 80)"])
        {'freeze.coverage': (0.9, 0.95), 'optimizer.boundaries': ((), (40, 80))}
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip()
        check_known(key)
        if key in _ELSEWHERE:
            raise UserError(f"--grid {key}: vary it with {_ELSEWHERE[key]}")
        if key in grid:
            raise UserError(f"--grid {key} is there twice; list all values after one =")
        pieces = re.split(r",(?![^(]*\))", listed)  # not the commas inside of tuples
        values = tuple(parse_value(piece) for piece in pieces if piece.strip())
        if not equals or not values:
            raise UserError(f"--grid {text!r} has no values; write {key}=VALUE,VALUE")
        if len(set(values)) < len(values):
            raise UserError(f"--grid {text!r} has a value twice")
        grid[key] = values
    return grid


def parse_value(text: str) -> Any:
    """A number, a tuple, a truth value, None, or else the text itself.

    Example:
        >>> [parse_value(text) for text in ("0.5", "(40, 80)", "true", "none", "scott", "1e-3")]
        [0.5, (40, 80), True, None, 'scott', 0.001]
    """
    text = text.strip()
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def applies(key: str, choice: Choice) -> bool:
    """Whether a config key can change anything in a run of this rule, but for its share.

    Example:
        >>> none, kde_otsu = parse_rules("none,kde_otsu")
        >>> [applies("freeze.coverage", choice) for choice in (none, kde_otsu)]
        [False, True]
    """
    if not key.startswith("freeze."):
        return True
    if choice.rule == "none" or key in choice.settings:
        return False
    return key not in OF_RULES or key.removeprefix("freeze.") in rule_parameters(choice.rule)
