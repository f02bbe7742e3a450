"""Errors that are the user's to mend. Binaries print them as one line and exit with status 2."""


class UserError(ValueError):
    """One line that says what is wrong, where, and what to do."""


class DataError(UserError):
    """A file or row that can't be used."""


class ConfigError(UserError):
    """A setting that can't work."""


class CheckpointError(UserError):
    """A checkpoint that is missing, broken, or of another model."""


class SaveError(CheckpointError):
    """A checkpoint that can't be written."""
