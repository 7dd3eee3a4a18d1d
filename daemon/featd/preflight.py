"""What must be right before work starts: configuration, catalog, schema, store, net, fingerprint, device."""

from __future__ import annotations

import os
import sys

from featd.config import Settings
from featd.errors import (
    EXIT_BAD_CONFIG,
    EXIT_ERROR,
    EXIT_OUT_OF_REACH,
    CatalogUnavailableError,
    ConfigError,
    FeatdError,
)
from featd.signals import name_of
from featd.worker import devices


def check_beforehand(settings: Settings) -> None:
    """Everything that must be right before work starts, tried once in a throw-away process.

    Caffe aborts its process on a bad model, and CUDA does not survive a fork: neither may happen here.
    """
    if not settings.roots:
        raise ConfigError("roots: name at least one folder of images in a [[roots]] section")
    said_read, said_write = os.pipe2(os.O_CLOEXEC)
    native_stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _check_in_child(settings, said_write, native_stderr)
    os.close(said_write)
    with os.fdopen(said_read, encoding="utf-8") as said:
        message = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(native_stderr, "rb") as words:
        words.seek(0)
        last_words = words.read()[-2000:].decode(errors="replace").strip()
    if code == 0:
        return
    if code < 0:
        raise ConfigError(
            f"the net cannot be loaded: its engine died of {name_of(-code)}; its last words:\n{last_words}"
        )
    error = {EXIT_BAD_CONFIG: ConfigError, EXIT_OUT_OF_REACH: CatalogUnavailableError}.get(code, FeatdError)
    raise error(message or last_words)


def _check_in_child(settings: Settings, said: int, native_stderr: int) -> None:
    """The throw-away process: loads what a worker loads, says what is wrong, and never returns."""
    code = EXIT_ERROR
    try:
        from featd.catalog import connect, migrate
        from featd.worker import process as worker_process

        os.dup2(native_stderr, 2)
        chosen = devices.resolve(settings.workers.devices)
        catalog = connect.open_catalog(settings.catalog.url, settings.workers.lease_seconds)
        migrate.check_schema(catalog)
        worker_process.boot(settings, catalog, devices.isolate(chosen[0]), devices.cpu_threads(chosen))
        code = 0
    except FeatdError as error:
        os.write(said, str(error).encode())
        code = error.exit_code
    except BaseException as error:
        os.write(said, f"{type(error).__name__}: {error}".encode())
    finally:
        sys.stderr.flush()
        os._exit(code)
