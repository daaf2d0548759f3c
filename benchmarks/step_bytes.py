"""Memory that a compiled training step needs at once, by the share of frozen weights.

    python -m benchmarks.step_bytes [--models lenet5,captioner] [--frozen 0.5,0.8] [--json FILE]

The steps that `train.py` compiles for `freeze.compact=true`, beside that of full training; random
masks, the training data left out. As XLA plans it: arguments, results that are not written over
them, and temporaries.
"""

import sys

import jax

from benchmarks import command
from benchmarks.jax_steps import TRAINED, Ours
from benchmarks.rows import Rows
from pb_jax.errors import UserError
from pb_jax.program import run

COLUMNS = ("network", "way", "frozen", "state_mb", "step_mb")


def main() -> int:
    """Compile, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    networks = command.names(TRAINED, "network")
    parser.add_argument("--models", type=networks, default=",".join(TRAINED))
    parser.add_argument("--frozen", type=command.numbers, default="0,0.5,0.8,0.95")
    arguments = parser.parse_args()

    rows = Rows(arguments.json, COLUMNS, arguments.models)
    print(f"{'network':12} {'way':8} {'frozen':>6} {'state MB':>9} {'step MB':>8} {'of full':>8}")
    for name in arguments.models:
        whole = None
        for way, frozen in [("full", 0.0), *(("compact", share) for share in arguments.frozen)]:
            step = Ours(name, way, frozen)
            if step.step_mb is None:
                raise UserError(f"{jax.default_backend()}: XLA does not tell its plan")
            whole = whole or step.step_mb
            rows.add((name, way, frozen, step.state_mb, step.step_mb))
            print(
                f"{name:12} {way:8} {frozen:6.0%} {step.state_mb:9.1f} {step.step_mb:8.1f} "
                f"{step.step_mb / whole:8.3f}",
                flush=True,
            )
            jax.clear_caches()
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
