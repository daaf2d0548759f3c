"""What share `kde_otsu` freezes of gradients whose distribution is known, by coverage.

python benchmarks/frozen_by_tail.py
"""

import jax.numpy as jnp
import numpy as np

import pb_jax

WEIGHTS = 1_000_000
COVERAGES = (1.0, 0.95, 0.9, 0.8)


def main() -> None:
    """Print the table of docs/method.md; numpy's generator with seed 0."""
    rng = np.random.default_rng(0)
    samples = {
        "half-normal": rng.normal(size=WEIGHTS),
        "exponential": rng.exponential(size=WEIGHTS),
        "Student's t, 3 degrees": rng.standard_t(3, WEIGHTS),
        "lognormal, sigma 2": rng.lognormal(0, 2, WEIGHTS),
    }
    print("| abs(gradient) | " + " | ".join(f"coverage {c:g}" for c in COVERAGES) + " |")
    print("| --- |" + " ---: |" * len(COVERAGES))
    for name, sample in samples.items():
        gradients = jnp.asarray(sample, jnp.float32)
        masks = [pb_jax.kde_otsu(coverage=c)(gradients).mask for c in COVERAGES]
        shares = [f"{float(pb_jax.frozen_fraction(mask)):.1%}" for mask in masks]
        print(f"| {name} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
