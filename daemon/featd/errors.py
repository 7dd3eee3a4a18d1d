"""All errors that featd raises on purpose: one tree, grouped by what the caller can do, with an exit code each.

Messages are for the operator: they name the thing and the way out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from featd.states import Kind

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOTHING_MATCHED = 3
EXIT_FAILED_ROWS = 4
EXIT_OUT_OF_REACH = 75
"""EX_TEMPFAIL: catalog or store out of reach, a seat that is taken, or a drain that is paused or has no room. systemd
retries."""
EXIT_BAD_CONFIG = 78
"""EX_CONFIG: needs a person. systemd must not restart."""


def reason(error: Exception) -> str:
    """The text of an error, without its number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def first_line(error: BaseException | None) -> str:
    """The first line of what a library says."""
    return str(error).strip().partition("\n")[0]


def where_to_look(error: OSError) -> str:
    """What to do about a file that a person named and that is not there; empty for other errors."""
    return ": check the path" if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) else ""


@contextmanager
def naming(*files: object) -> Iterator[None]:
    """Puts the first of `files` before the message of a ModelError that names none of them."""
    try:
        yield
    except ModelError as error:
        if any(str(file) in str(error) for file in files):
            raise
        raise type(error)(f"{files[0]}: {error}") from error


class FeatdError(Exception):
    """An error that featd reports; the message says what is wrong and what to do."""

    exit_code = EXIT_ERROR


# Stop the daemon: these need a person.


class ConfigError(FeatdError):
    """The configuration is wrong, or does not fit this catalog. `faults`: each thing that is wrong, by itself."""

    exit_code = EXIT_BAD_CONFIG

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class ModelError(ConfigError):
    """The net or its weights are missing, unreadable, refused, or lack the wanted blob."""


class DeviceError(ConfigError):
    """There is no such device."""


class FingerprintError(ConfigError):
    """The configuration would produce other vectors than the catalog has."""


class SchemaError(ConfigError):
    """The catalog's schema is older or newer than this featd."""


class LockHeldError(FeatdError):
    """Another supervisor is running on this store and host."""


# Retry later: nothing is wrong with the configuration.


class CatalogUnavailableError(FeatdError):
    """The database cannot be reached."""

    exit_code = EXIT_OUT_OF_REACH


class ClusterUnavailableError(FeatdError):
    """There is no Ray cluster, or it does not answer."""

    exit_code = EXIT_OUT_OF_REACH


class SeatTakenError(FeatdError):
    """Another supervisor works under this seat's name, with another state folder."""

    exit_code = EXIT_OUT_OF_REACH


class StoreUnavailableError(FeatdError):
    """The store is not mounted, belongs to another instance, or cannot be written."""

    exit_code = EXIT_OUT_OF_REACH


class RefusedError(FeatdError):
    """The database refuses a value, such as a path that is too long for its index: no retry helps."""


# Stop the worker; the supervisor starts another.


class LeaseLostError(FeatdError):
    """This worker's lease has ended: its images belong to other workers now."""


class AmbiguousPathError(FeatdError, LookupError):
    """Several roots have an image of this path: ask for (root, path)."""


class TokenError(FeatdError):
    """A token does not name a place in the feed of this catalog: whoever follows it begins anew."""


class EngineError(FeatdError):
    """The engine fails for a reason that is not an image's fault, such as a faulty device or changed vectors."""


class DecoderError(FeatdError):
    """No decoder can start, or they die one after another: the vectors that were made before are good."""


# Fail one image, never the other images of its batch.


class ImageError(FeatdError):
    """An image cannot be turned into a vector; `kind` decides what happens to its row."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


# Results of commands.


class NothingMatchedError(FeatdError):
    """A command was asked about something that does not exist."""

    exit_code = EXIT_NOTHING_MATCHED
