"""Measurements: `python -m benchmarks.NAME --help` says what each of them measures, and how."""

import sys

from pb_jax import program

if sys.argv[0] == "-m":  # Python is about to run one of them, which imports jax at its top
    program.interrupt_quietly()
