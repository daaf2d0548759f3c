"""Tables of a page: what the runs are, how they differ, what share of each layer they froze."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pb_jax.reports.leaves import KINDS, kinds_of, rows
from pb_jax.reports.page.charts import colour_of, named
from pb_jax.reports.page.markup import Markup, breakable, element, join
from pb_jax.reports.run_folder import Mask, Run
from pb_jax.reports.style import number, percent
from pb_jax.training.config import flatten
from pb_jax.training.progress import clock

NOTHING = "-"
_MOST_ROWS = 72
_SETTING = ("network", "data", "weights", "computed on", "versions", "date")
_BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")


def summary(runs: Mapping[str, Run]) -> Markup:
    """What the runs are and what they have reached."""
    columns = [_facts(run) for run in runs.values()]
    found = {
        name: [column.get(name, NOTHING) for column in columns]
        for name in dict.fromkeys(name for column in columns for name in column)
    }
    found = {name: values for name, values in found.items() if {*values} != {NOTHING}}
    of_all = [
        name
        for name, values in found.items()
        if name in _SETTING and len(runs) > 1 and len({*values} - {NOTHING}) == 1
    ]
    note = "; ".join(f"{name}: {max(found.pop(name))}" for name in of_all)  # "-" is less
    validations = "; ".join(dict.fromkeys(run.validation for run in runs.values()))
    return join(
        table("", [run_name(i, name) for i, name in enumerate(runs)], list(found.items())),
        element("p", f"Accuracy and loss: {validations}.", class_="quiet"),
        element("p", f"All runs: {note}.", class_="quiet") if note else "",
    )


def differences(runs: Mapping[str, Run]) -> Markup:
    """The keys of the configuration in which the runs differ, with the value of each."""
    configs = [flatten(run.config) for run in runs.values()]
    keys = sorted({key for config in configs for key in config})
    found = [(key, [config.get(key) for config in configs]) for key in keys]
    differing = [
        (breakable(key), _in_short(values))
        for key, values in found
        if len(set(map(value, values))) > 1
    ]
    if not differing:
        return element("p", "The configurations are the same in every key.")
    return table("key", [run_name(i, name) for i, name in enumerate(runs)], differing)


def configuration(run: Run) -> Markup:
    """Every key of a run's configuration."""
    lines = [(breakable(key), [value(v)]) for key, v in flatten(run.config).items()]
    return table("key", ["value"], lines)


def frozen_by_layer(masks: Mapping[int, tuple[str, Mask]]) -> Markup:
    """Frozen share of each layer, or block, from the input on; all masks are of the same leaves.

    Args:
        masks: each with the name of its run, by the run's number among all of the page. A single
            one gets a column for each kind of leaf.
    """
    number_of_first, (_, first) = next(iter(masks.items()))
    names = rows(first.names, _MOST_ROWS)
    labels = list(dict.fromkeys(names))
    if len(masks) == 1:
        kinds = kinds_of(first.names)
        shown = [kind for kind in KINDS if kind in kinds]
        columns = [
            _Column(element("span", kind), number_of_first, first, [k == kind for k in kinds])
            for kind in shown
        ]
    else:
        everything = [True] * len(names)
        columns = [
            _Column(run_name(run, name), run, mask, everything)
            for run, (name, mask) in masks.items()
        ]
    body = []
    for label in [None, *labels]:
        members = np.array([label is None or name == label for name in names])
        cells = [column.cell(members) for column in columns]
        body.append(
            (
                "all" if label is None else breakable(label),
                [f"{first.sizes[members].sum():,}", *cells],
            )
        )
    return table("layer", ["weights", *(column.head for column in columns)], body)


class _Column(NamedTuple):
    head: Markup
    run: int
    mask: Mask
    leaves: Sequence[bool]

    def cell(self, members: np.ndarray) -> Markup:
        members = members & np.array(self.leaves)
        size, frozen = self.mask.sizes[members].sum(), self.mask.frozen[members].sum()
        return _share(float(frozen / size), self.run) if size else element("span", NOTHING)


def _share(share: float, run: int) -> Markup:
    bar = element(
        "svg",
        element("rect", class_="track", width=100, height=4),
        element("rect", class_="part", width=round(100 * share, 2), height=4),
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return element(
        "span", percent(share), element("span", bar, class_=colour_of(run)), class_="share"
    )


def run_name(index: int, name: str) -> Markup:
    """A run's name, with its colour."""
    return named(colour_of(index), name)


def value(content: Any) -> str:
    """A value of a configuration as text."""
    return NOTHING if content is None else json.dumps(content, ensure_ascii=False).strip('"')


def _in_short(values: Sequence[Any]) -> list[str]:
    """Values of several runs, numbers as everywhere on the page unless that makes them alike.

    Example:
        >>> _in_short([0.8257126265559118, 0.5, None]), _in_short([0.123456, 0.123457])
        (['0.8257', '0.5', '-'], ['0.123456', '0.123457'])
    """
    short = [number(v) if isinstance(v, float) else value(v) for v in values]
    whole = [value(v) for v in values]
    return short if len(set(short)) == len(set(whole)) else whole


def table(
    corner: str, head: Sequence[object], body: Sequence[tuple[object, Sequence[object]]]
) -> Markup:
    """A table that scrolls by itself where the page is narrow; the first column stays.

    Args:
        corner: head of the first column.
        head: of the others.
        body: lines: the first cell, and the others.
    """
    top = element("tr", element("th", corner), *(element("th", cell, scope="col") for cell in head))
    lines = [
        element(
            "tr",
            element("th", name, scope="row"),
            *(element("td", breakable(cell)) for cell in cells),
        )
        for name, cells in body
    ]
    whole = element("table", element("thead", top), element("tbody", *lines))
    return element("div", whole, class_="scroll", tabindex=0)


def _facts(run: Run) -> dict[str, str]:
    """A run in a few words and numbers, from its records, and its summary where there is one."""
    last, end = run.records[-1], run.summary or {}
    score = "val_bleu4" if run.captions else "val_accuracy"
    best = max(run.records, key=lambda record: (_number(record, score), -record["epoch"]))
    masked = [record for record in run.records if record["frozen_fraction"]]
    of = masked[-1] if masked else last
    asked = run.config.get("epochs", "?")
    facts = {
        "network": run.model,
        "data": run.dataset,
        "rule": run.rule,
        "epochs": f"{last['epoch']}"
        if run.finished
        else f"{last['epoch']} of {asked}, not finished",
        "accuracy, last epoch": percent(_number(last, "val_accuracy"), 2),
        "accuracy, best epoch": f"{percent(_number(best, 'val_accuracy'), 2)} "
        f"(epoch {best['epoch']})",
        "loss, last epoch": number(_number(last, "val_loss")),
    }
    for split, title in (("val", "validation"), ("test", "test")):
        scores = [end.get(f"{split}_{order}") for order in _BLEU]
        if None not in scores:
            facts[f"BLEU-1 to 4, {title}"] = "  ".join(f"{score:.3f}" for score in scores)
    facts |= {
        "frozen weights": percent(of["frozen_fraction"], 2),
        "zero gradients, last epoch": percent(_number(last, "zero_gradient_fraction"), 2),
        "threshold t": number(_number(of, "threshold")) if masked else "none",
        "time of the epochs": _time(run.records),
    }
    if run.summary is not None:
        facts["weights"] = f"{end.get('parameters', 0):,}"
        facts["computed on"] = str(end.get("hardware", end.get("device", NOTHING)))
        versions = [f"{name} {version}" for name, version in end.get("versions", {}).items()]
        facts["versions"] = ", ".join(versions) or NOTHING
        facts["date"] = str(end.get("date", NOTHING))
    return facts


def _number(record: Mapping[str, Any], key: str) -> float:
    return math.nan if record.get(key) is None else float(record[key])


def _time(records: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(_number(record, "seconds") for record in records)
    return NOTHING if math.isnan(seconds) else clock(seconds)
