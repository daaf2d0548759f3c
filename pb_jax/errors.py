"""The error that a user can mend."""


class UserError(Exception):
    """Something the user can put right: missing data, a corrupt file, a mistyped config key.

    Its message says what is wrong and what to do; the programs print it without a stack trace.

    >>> raise UserError("no such file: mnist.gz; put it into DIR")
    Traceback (most recent call last):
    ...
    pb_jax.errors.UserError: no such file: mnist.gz; put it into DIR
    """

    status = 2
    """The exit status of a program that ends with it."""
