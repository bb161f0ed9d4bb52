"""
What the columns of somebody's history mean: a small YAML file, checked before anything is sent.

Every field takes the name of a column, or a table that says more: `{column: NAME, prefix: "card-"}`,
`{column: category, values: {gas: "5541"}}`, `{constant: USD}`. README.md beside the mappings explains all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import iso4217
import msgspec
import yaml
from msgspec import Meta


class MappingInvalid(Exception):
    """The mapping cannot be used. The message names the place in it and the remedy."""


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a value comes from."""

    column: str = ""
    """The column; empty for a constant."""
    constant: str = ""
    prefix: str = ""
    """Put before the column's value: ids of different kinds should not look alike."""
    values: dict[str, str] | None = None
    """The column's value → ours; one that is not listed is "not known"."""


class TimeField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a purchase happened."""

    column: str
    time_zone: str = "UTC"
    """Of values that name none."""
    unit: Literal["", "seconds", "milliseconds", "microseconds"] = ""
    """For numbers: what is counted since 1970-01-01 UTC."""


class AmountField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much."""

    column: str
    unit: Literal["major", "minor"] = "major"
    """`major`: 12.34 is twelve dollars; `minor`: 1234 is."""


class LabelField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a purchase truly was."""

    column: str
    fraud: tuple[str, ...] = ("1", "true", "True")
    """Values that mean fraud; every other value means genuine."""


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contract's fields and where they come from."""

    time: str | TimeField
    customer_id: str | Field
    amount: str | AmountField
    merchant_id: str | Field
    transaction_id: str | Field | None = None
    """Absent: ids are derived from the place in the stream."""
    currency: str | Field | None = None
    """Absent: the line's."""
    category_code: str | Field | None = None
    country_code: str | Field | None = None
    device_id: str | Field | None = None
    ip_address: str | Field | None = None
    latitude: str | Field | None = None
    longitude: str | Field | None = None
    channel: str | Field | None = None


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The credit line that is opened for every customer when they first buy."""

    currency: str
    limit: Annotated[int, Meta(gt=0)] | AmountField
    """In minor units, or from a column of the customer's first row."""
    time_zone: str = "UTC"


class Captures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an approved purchase is taken."""

    when: Literal["at once", "later", "never"] = "at once"
    delay_hours: Annotated[float, Meta(gt=0, le=24 * 31)] = 24.0
    """Of the data's time, for `later`."""


class Repayment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What customers pay back every month. It is paid when the customer next buys, before that purchase."""

    day_of_month: Annotated[int, Meta(ge=1, le=28)] = 1
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Of what is owed then."""


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a mapping file says."""

    columns: Columns
    line: Line
    query: str = ""
    """A DuckDB query over the table `data`, to join or compute; the file itself when absent."""
    label: LabelField | None = None
    captures: Captures = Captures()
    repayment: Repayment | None = None

    def fields(self) -> dict[str, Field]:
        """Return the plain fields that are mapped, by their name in the contract."""
        found = {}
        for name in _PLAIN:
            given = getattr(self.columns, name)
            if given is not None:
                found[name] = Field(given) if isinstance(given, str) else given
        return found

    def time(self) -> TimeField:
        """Return where the time comes from."""
        given = self.columns.time
        return TimeField(given) if isinstance(given, str) else given

    def amount(self) -> AmountField:
        """Return where the amount comes from."""
        given = self.columns.amount
        return AmountField(given) if isinstance(given, str) else given


_PLAIN: Final = (
    "customer_id",
    "merchant_id",
    "transaction_id",
    "currency",
    "category_code",
    "country_code",
    "device_id",
    "ip_address",
    "latitude",
    "longitude",
    "channel",
)


def load_mapping(path: Path) -> Mapping:
    """
    Return the mapping in a file.

    Raises:
        MappingInvalid: it cannot be read, says something unknown, or leaves out something needed.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise MappingInvalid(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MappingInvalid(f"{path} is not YAML: {error}") from error
    return read_mapping(content, str(path))


def read_mapping(content: Any, name: str) -> Mapping:
    """Return the mapping that YAML content stands for; `name` is how errors call it."""
    try:
        mapping = msgspec.convert(content, Mapping)
    except msgspec.ValidationError as error:
        raise MappingInvalid(f"{name}: {error}") from None
    for field_name, field in mapping.fields().items():
        if bool(field.column) == bool(field.constant):
            raise MappingInvalid(f"{name}: columns.{field_name} needs either `column` or `constant`")
        if field.constant and (field.values or field.prefix):
            raise MappingInvalid(f"{name}: columns.{field_name} is a constant and takes neither prefix nor values")
    for key in ("customer_id", "merchant_id", "transaction_id"):
        if key in mapping.fields() and mapping.fields()[key].constant:
            raise MappingInvalid(f"{name}: columns.{key} must come from a column")
    if (mapping.columns.latitude is None) != (mapping.columns.longitude is None):
        raise MappingInvalid(f"{name}: columns.latitude and columns.longitude go together")
    if mapping.line.currency not in CURRENCIES:
        raise MappingInvalid(f"{name}: line.currency {mapping.line.currency!r} is not in ISO 4217")
    for where, zone in (("line", mapping.line.time_zone), ("columns.time", mapping.time().time_zone)):
        try:
            ZoneInfo(zone)
        except (ValueError, OSError, LookupError):
            raise MappingInvalid(f"{name}: {where}.time_zone {zone!r} is not in the IANA database") from None
    return mapping


CURRENCIES: Final = {currency.code: currency.exponent or 0 for currency in iso4217.Currency}
"""Code → digits after the point."""
