"""What all sections of a configuration have in common: frozen, strict, and values that a file can hold."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from gpuclust.errors import ConfigError, StoreError
from gpuclust.formatting import shown
from gpuclust.places import place

LARGEST = 2**63
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _local(text: str) -> str:
    """What can be a path, with ``~`` as the home folder; otherwise as it was written, so that runs know it again."""
    try:
        place(text)
    except StoreError as error:
        raise ValueError(str(error)) from None
    return os.path.expanduser(text)


LocalPath = Annotated[str, AfterValidator(_local)]


class Section(BaseModel):
    """Base of all sections: frozen, and refuses keys it does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, data: Any) -> Any:
        """``true`` is no 1; what no file and no text in Unicode can hold is no value."""
        for name, value in data.items() if isinstance(data, dict) else ():
            if isinstance(value, int) and abs(value) >= LARGEST:
                raise ValueError(f"{name} is {shown(value)}: give a number below {LARGEST:,}")
            if isinstance(value, str) and (surrogates := [c for c in value if "\ud800" <= c <= "\udfff" or c == "\0"]):
                raise ValueError(f"{name} is {shown(value)}, with {surrogates[0]!a}, which is no text: take it away")
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(f"{name} is {str(value).lower()}: it is no switch; give a value")
        return data


def as_text(value: Any) -> Any:
    """A number as text, which `parse_bytes` reads or refuses by name."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def as_bytes(value: Any) -> Any:
    """A whole number as so many bytes; a small one lacks its unit."""
    return f"{value}B" if isinstance(value, int) and value >= 10**6 else as_text(value)


def parse_bytes(text: str, key: str = "device.memory") -> int:
    """Turn ``6GB``, ``5.5 GiB`` or ``800MB`` into bytes.

    Raises
    ------
    ConfigError
        If the text is not a positive number with a unit.

    Examples
    --------
    >>> parse_bytes("6GB")
    6000000000
    """
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-zA-Z]+)\s*", text)
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise ConfigError(f"{key} is {text!r}: write a positive number and a unit, such as 6GB or 800MiB")
    return int(float(match[1]) * unit)
