"""Memory that a compiled training step needs at once, by the share of frozen weights.

    python -m benchmarks.step_bytes [--models lenet5,captioner] [--frozen 0.5,0.8] [--json FILE]

The steps that `train.py` compiles for `freeze.compact=true`, beside that of full training; random
masks, the training data left out. As XLA plans it: arguments, results that are not written over
them, and temporaries.
"""

import argparse
import sys
from pathlib import Path

import jax

from benchmarks.jax_steps import TRAINED, Ours
from benchmarks.rows import write_rows
from pb_jax.errors import UserError
from pb_jax.program import run
from pb_jax.training import check_known

COLUMNS = ("network", "way", "frozen", "state_mb", "step_mb")


def main() -> int:
    """Compile, print a table, and write the numbers where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(TRAINED))
    parser.add_argument("--frozen", default="0,0.5,0.8,0.95")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    for name in names:
        check_known(name, TRAINED, "network")

    rows = []
    print(f"{'network':12} {'way':8} {'frozen':>6} {'state MB':>9} {'step MB':>8} {'of full':>8}")
    for name in names:
        shares = [float(share) for share in arguments.frozen.split(",")]
        whole = None
        for way, frozen in [("full", 0.0), *(("compact", share) for share in shares)]:
            step = Ours(name, way, frozen)
            if step.step_mb is None:
                raise UserError(f"{jax.default_backend()}: XLA does not tell its plan")
            whole = whole or step.step_mb
            rows.append((name, way, frozen, step.state_mb, step.step_mb))
            print(
                f"{name:12} {way:8} {frozen:6.0%} {step.state_mb:9.1f} {step.step_mb:8.1f} "
                f"{step.step_mb / whole:8.3f}",
                flush=True,
            )
            jax.clear_caches()
    if arguments.json:
        write_rows(arguments.json, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
