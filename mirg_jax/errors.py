"""Errors caused by the user's input. Binaries print them as one line and exit with status 2."""


class UserError(ValueError):
    """An error the user can fix; its one-line message says what is wrong, where, and what to do."""


class DataError(UserError):
    """An input file or data row that can't be used."""


class ConfigError(UserError):
    """An invalid setting, or settings that contradict each other."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class SaveError(CheckpointError):
    """A failure to write a checkpoint."""
