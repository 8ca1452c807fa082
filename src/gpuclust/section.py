"""What all sections of a configuration have in common: frozen, strict, and values that a file can hold."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from gpuclust.errors import StoreError
from gpuclust.formatting import shown
from gpuclust.places import place

LARGEST = 2**63


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
