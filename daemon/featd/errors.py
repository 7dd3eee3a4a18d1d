"""Every error featd raises on purpose: one tree, grouped by what the caller can do, one exit code each.

Messages are written for the operator: they name the thing and the way out.
"""

from __future__ import annotations

from featd.states import Kind

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOTHING_MATCHED = 3
EXIT_FAILED_ROWS = 4
EXIT_OUT_OF_REACH = 75
"""EX_TEMPFAIL: catalog or store out of reach. systemd retries."""
EXIT_BAD_CONFIG = 78
"""EX_CONFIG: only a person can mend it. systemd must not restart."""


def reason(error: Exception) -> str:
    """What an error says, without the number and the path that the message around it has."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class FeatdError(Exception):
    """Something featd cannot go on with; the message says what and what to do."""

    exit_code = EXIT_ERROR


# Stop the daemon: only a person can mend these.


class ConfigError(FeatdError):
    """The configuration is wrong, or does not fit this catalog."""

    exit_code = EXIT_BAD_CONFIG


class ModelError(ConfigError):
    """The net or its weights are missing, unreadable, refused, or lack the wanted blob."""


class FingerprintError(ConfigError):
    """The configuration would make other vectors than the catalog holds."""


class SchemaError(ConfigError):
    """The catalog's schema is older or newer than this featd."""


class LockHeldError(FeatdError):
    """Another supervisor runs on this store and host."""


# Retry later: nothing is wrong with the configuration.


class CatalogUnavailableError(FeatdError):
    """The database cannot be reached."""

    exit_code = EXIT_OUT_OF_REACH


class StoreUnavailableError(FeatdError):
    """The store is not mounted, is another instance's, or cannot be written."""

    exit_code = EXIT_OUT_OF_REACH


# Stop the worker; the supervisor starts another.


class LeaseLostError(FeatdError):
    """This worker's lease has ended: whatever it holds belongs to others now."""


class EngineError(FeatdError):
    """The engine fails for reasons that are not an image's fault (a sick device, a changed vector)."""


# Give up one image, never its neighbours.


class ImageError(FeatdError):
    """One image could not be turned into a vector; `kind` decides what happens to its row."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    def __reduce__(self) -> tuple[type[ImageError], tuple[Kind, str]]:
        return (ImageError, (self.kind, self.message))


# Answers of commands.


class NothingMatchedError(FeatdError):
    """A command was asked about something that is not there."""

    exit_code = EXIT_NOTHING_MATCHED
