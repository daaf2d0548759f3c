"""The error of this package: data that is missing, damaged or cannot be written."""

from pb_jax.errors import UserError


class DataError(UserError):
    """Data is missing, damaged, not what its name says, or cannot be written.

    Its message names the file, what was found, what was expected and what to do.

    >>> issubclass(DataError, UserError)
    True
    """
