"""TLS: Dask's own, as Dask's configuration (``distributed.comm.*``) has it; here is what to say when that is not whole.

Dask reads ``~/.config/dask/*.yaml``, the folder of ``DASK_CONFIG``, and variables ``DASK_DISTRIBUTED__COMM__TLS__…``.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from gpuclust import schema
from gpuclust.errors import SchedulerError

SECTION = "distributed.comm.tls"
HOW = "set it in Dask's configuration (~/.config/dask/*.yaml, or DASK_DISTRIBUTED__COMM__TLS__…), see docs/tls.md"


def check(name: str) -> None:
    """Refuse certificates that are missing or cannot be read, before Dask tries to use them.

    Raises
    ------
    SchedulerError
        With the key of Dask's configuration and its value.
    """
    import dask
    from distributed import Security

    ours = name in schema.SCHEDULERS
    if not ours and dask.config.get("distributed.client.security-loader", None):
        return  # a function of the user's gives the certificates
    required = dask.config.get("distributed.comm.require-encryption", None)
    if not ours and required and not name.startswith("tls://"):
        raise SchedulerError(
            f"--scheduler is {name}, but distributed.comm.require-encryption is {required} in Dask's configuration: "
            "give the tls:// address of a scheduler with TLS, or set it to false"
        )
    if not (name.startswith("tls://") or (ours and required)):
        return
    try:
        security = Security()
    except (TypeError, ValueError) as error:
        raise SchedulerError(f"{SECTION}.* of Dask's configuration is wrong: {error}") from error
    roles = ("client", "scheduler", "worker") if ours else ("client",)
    _check_file(f"{SECTION}.ca-file", security.tls_ca_file, needed=True, name=name)
    for role in roles:
        _check_file(f"{SECTION}.{role}.cert", getattr(security, f"tls_{role}_cert"), needed=True, name=name)
        _check_file(f"{SECTION}.{role}.key", getattr(security, f"tls_{role}_key"), needed=False, name=name)
        try:
            security.get_connection_args(role)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SchedulerError(
                f"the certificates for {name} cannot be used ({_reason(error)}): look at {SECTION}.ca-file "
                f"({security.tls_ca_file}), {SECTION}.{role}.cert ({getattr(security, f'tls_{role}_cert')}) and "
                f"{SECTION}.{role}.key ({_named(getattr(security, f'tls_{role}_key'))}) of Dask's configuration"
            ) from error


def _check_file(key: str, value: Any, *, needed: bool, name: str) -> None:
    if value is None:
        if needed:
            raise SchedulerError(f"TLS with {name} needs {key}, which is not set: {HOW}")
        return
    if "\n" not in value and not os.path.isfile(value):  # with line breaks it is the certificate itself
        raise SchedulerError(f"{key} of Dask's configuration is {value}, which is no file here: {HOW}")


def _named(key: str | None) -> str:
    return "none, so that the certificate's file holds it" if key is None else "given" if "\n" in key else key


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    return str(error)
