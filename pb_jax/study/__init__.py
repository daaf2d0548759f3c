"""Studies: rules, seeds and any config key, as tables and figures.

`study.py` runs them. A study's folder holds:

| path | content |
| --- | --- |
| `study.json` | the configuration that all runs share, and what each run changes |
| `runs/RULE[/KEY=VALUE...]/seed_N/` | a run of `train.py`, see `pb_jax.training`; `log.txt`: its \
output |
| `together/` | checkpoints of runs that train side by side |
| `table.md`, `table.json` | every run, and every cell's mean ± sd with differences seed by seed |
| `figures/` | see `pb_jax.study.figures` |

A *cell* is a rule at a point of the grid; its runs differ in their seed, and in nothing else.
`python -m pb_jax.study tables DIR` makes tables and figures from the other files again.
"""

from typing import TYPE_CHECKING

from pb_jax.lazily import lazily

if TYPE_CHECKING:
    from pb_jax.study.api import *  # noqa: F403 (what it offers is said there)
else:
    __getattr__, __dir__ = lazily(__name__, "pb_jax.study.api")
