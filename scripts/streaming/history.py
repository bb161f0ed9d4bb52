"""Reads a history from CSV or Parquet, in order of time, one row after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import duckdb
import msgspec
from scripts.streaming.mapping import CURRENCIES, AmountField, Field, Mapping
from scripts.streaming.purchase import GENUINE, ID_PATTERN, Purchase, request_id

FETCHED: Final = 5_000
"""Rows taken from the file at a time."""
AMOUNT_MAX: Final = 10**15
CHANNELS: Final = ("MOBILE_APP", "WEB", "IN_STORE", "RECURRING")
_SHOWN: Final = 40
_UNITS: Final = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
_ROW: Final = "source_row"
_IDS: Final = ("transaction_id", "customer_id", "merchant_id")
_PATTERNS: Final = {
    "transaction_id": (re.compile(ID_PATTERN), "an id: letters, digits, `._:-`, at most 64"),
    "customer_id": (re.compile(ID_PATTERN), "an id: letters, digits, `._:-`, at most 64"),
    "merchant_id": (re.compile(r".{1,64}", re.DOTALL), "1 to 64 characters"),
    "category_code": (re.compile(r"([0-9]{4})?"), "four digits"),
    "country_code": (re.compile(r"([A-Z]{2})?"), "two capital letters"),
    "device_id": (re.compile(r".{0,128}", re.DOTALL), "at most 128 characters"),
    "ip_address": (re.compile(r".{0,45}", re.DOTALL), "at most 45 characters"),
    "currency": (re.compile("|".join(CURRENCIES)), "a currency code of ISO 4217"),
    "channel": (re.compile(f"({'|'.join(CHANNELS)})?"), f"one of {', '.join(CHANNELS)}"),
}


class HistoryUnusable(Exception):
    """The file cannot be streamed with this mapping. The message names the column."""


class BadRow(msgspec.Struct, frozen=True):
    """A row that cannot be a purchase, and why."""

    number: int
    """Its place in the stream, from 1."""
    source_row: int
    """Its place in the file, from 1, headings not counted; 0 when a query hides it."""
    problem: str

    def __str__(self) -> str:
        place = f"row {self.source_row} of the file" if self.source_row else f"row {self.number} of the stream"
        return f"{place}: {self.problem}"


class _Unreadable(Exception):
    """A value that does not fit its field."""


class History:
    """A file seen through a mapping."""

    def __init__(self, data: Path, mapping: Mapping) -> None:
        """
        Open the file.

        Raises:
            HistoryUnusable: it cannot be read, or lacks a column that the mapping names.
        """
        if not data.is_file():
            raise HistoryUnusable(f"{data} is not a file")
        self._mapping = mapping
        self._fields = mapping.fields()
        self._exponent = CURRENCIES[mapping.line.currency]
        self._zone = ZoneInfo(mapping.time().time_zone)
        self._database = duckdb.connect(config={"preserve_insertion_order": True})
        self._from = self._relation(data)
        self._columns = self._known_columns(data)
        self._place = {name: place for place, name in enumerate(self._needed(data))}

    def count(self) -> int:
        """Return how many rows there are."""
        found = self._database.execute(f"SELECT count(*) FROM ({self._from})").fetchone()  # noqa: S608  ours
        assert found is not None
        return int(found[0])

    def rows(self, *, after: int = 0, limit: int = 0) -> Iterator[Purchase | BadRow]:
        """Yield the rows after the first `after` in order of time, up to place `limit` in all (0: to the end)."""
        order = [f"{self._instant()} ASC NULLS FIRST"]
        order += [_quoted(self._fields["transaction_id"].column)] if "transaction_id" in self._fields else []
        order += [_ROW] if _ROW in self._columns else []
        selected = ", ".join((*map(_quoted, self._place), self._instant(), _ROW if _ROW in self._columns else "0"))
        bounds = f"LIMIT {limit - after} OFFSET {after}" if limit else f"OFFSET {after}"
        found = self._database.execute(
            f"SELECT {selected} FROM ({self._from}) ORDER BY {', '.join(order)} {bounds}"  # noqa: S608  the user's own
        )
        number = after
        while values := found.fetchmany(FETCHED):
            for row in values:
                number += 1
                try:
                    yield self._purchase(row, number)
                except _Unreadable as problem:
                    yield BadRow(number, int(row[-1]), str(problem))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _relation(self, data: Path) -> str:
        path = str(data).replace("'", "''")
        if data.suffix.lower() in {".parquet", ".pq"}:
            table = f"read_parquet('{path}')"
        else:
            # As text, so that a bad value is found by us, with its row, and ids keep their leading zeros.
            table = f"read_csv('{path}', header=true, all_varchar=true)"
        numbered = f"SELECT *, row_number() OVER () AS {_ROW} FROM {table}"  # noqa: S608  a local file
        if not self._mapping.query:
            return numbered
        return f"WITH data AS ({numbered}) {self._mapping.query}"

    def _known_columns(self, data: Path) -> dict[str, str]:
        try:
            found = self._database.execute(f"DESCRIBE {self._from}").fetchall()
        except duckdb.Error as error:
            what = "query" if self._mapping.query else "file"
            raise HistoryUnusable(f"{data}: the {what} cannot be read: {error}") from error
        return {name: str(kind) for name, kind, *_ in found}

    def _needed(self, data: Path) -> list[str]:
        mapping = self._mapping
        named = {f"columns.{name}": field.column for name, field in self._fields.items() if field.column}
        named["columns.time"] = mapping.time().column
        named["columns.amount"] = mapping.amount().column
        if mapping.label:
            named["label"] = mapping.label.column
        if isinstance(mapping.line.limit, AmountField):
            named["line.limit"] = mapping.line.limit.column
        for where, column in named.items():
            if column not in self._columns:
                there = ", ".join(name for name in self._columns if name != _ROW)
                raise HistoryUnusable(f"{data}: {where} is to come from column {column!r}; the file has {there}")
        return list(dict.fromkeys(named.values()))

    def _instant(self) -> str:
        """Return SQL that orders rows by time: microseconds where the column is a time, the number otherwise."""
        time = self._mapping.time()
        column = _quoted(time.column)
        if time.unit:
            return f"TRY_CAST({column} AS DOUBLE)"
        if self._columns[time.column].startswith("TIMESTAMP"):
            return f"epoch_us({column})"
        return f"epoch_us(TRY_CAST({column} AS TIMESTAMP))"

    def _purchase(self, row: tuple[Any, ...], number: int) -> Purchase:
        texts = {name: self._text(name, field, row) for name, field in self._fields.items()}
        for name in _IDS:
            if not texts.get(name) and name in self._fields:
                raise _Unreadable(f"column {self._fields[name].column!r} ({name}) is empty")
        currency = texts.get("currency") or self._mapping.line.currency
        amount = self._mapping.amount()
        limit = self._mapping.line.limit
        latitude = self._degrees("latitude", texts, 90)
        longitude = self._degrees("longitude", texts, 180)
        purchase = Purchase(
            number=number,
            transaction_id=texts.get("transaction_id") or request_id("row", str(number)),
            customer_id=texts["customer_id"],
            at_us=self._time_us(row),
            amount_minor=self._minor(amount, row, "amount", CURRENCIES[currency]),
            currency=currency,
            merchant_id=texts["merchant_id"],
            category_code=texts.get("category_code", ""),
            country_code=texts.get("country_code", ""),
            device_id=texts.get("device_id", ""),
            ip_address=texts.get("ip_address", ""),
            latitude=latitude if longitude is not None else None,
            longitude=longitude if latitude is not None else None,
            channel=texts.get("channel", ""),
            limit_minor=limit if isinstance(limit, int) else self._minor(limit, row, "line.limit", self._exponent),
            label=self._label(row),
        )
        if not purchase.limit_minor:
            raise _Unreadable("line.limit must be above zero")
        return purchase

    def _value(self, column: str, row: tuple[Any, ...]) -> Any:
        return row[self._place[column]]

    def _text(self, name: str, field: Field, row: tuple[Any, ...]) -> str:
        if field.constant:
            text = field.constant
        else:
            value = self._value(field.column, row)
            text = "" if value is None else str(value).strip()
            if field.values is not None:
                text = field.values.get(text, "")
            if text:
                text = field.prefix + text
        check = _PATTERNS.get(name)
        if check and text and not check[0].fullmatch(text):
            raise _Unreadable(f"column {field.column!r} ({name}) is {_short(text)}; it must be {check[1]}")
        return text

    def _degrees(self, name: str, texts: dict[str, str], most: int) -> float | None:
        text = texts.get(name)
        if not text:
            return None
        try:
            degrees = float(text)
        except ValueError:
            degrees = float("nan")
        if not -most <= degrees <= most:
            column = self._fields[name].column
            raise _Unreadable(f"column {column!r} ({name}) is {_short(text)}; it must be -{most} to {most}")
        return degrees

    def _minor(self, field: AmountField, row: tuple[Any, ...], name: str, exponent: int) -> int:
        value = self._value(field.column, row)
        where = f"column {field.column!r} ({name})"
        try:
            # By way of text: 57.16 as a float is not 57.16, its shortest decimal is.
            exact = Decimal(str(value).strip())
        except InvalidOperation:
            raise _Unreadable(f"{where} is {_short(value)}; it must be a number") from None
        if not exact.is_finite() or not 0 <= exact <= AMOUNT_MAX:
            raise _Unreadable(f"{where} is {_short(value)}; it must be 0 or more, and at most 10^15 minor units")
        minor = exact.scaleb(exponent) if field.unit == "major" else exact
        whole = minor.to_integral_value()
        # Computed columns carry noise far behind the point; text that says a fraction means it.
        if whole != minor and not isinstance(value, float):
            raise _Unreadable(f"{where} is {_short(value)}; it has more digits than the currency")
        if whole > AMOUNT_MAX:
            raise _Unreadable(f"{where} is {_short(value)}; it must be at most 10^15 minor units")
        return int(whole)

    def _time_us(self, row: tuple[Any, ...]) -> int:
        time = self._mapping.time()
        value, instant = self._value(time.column, row), row[-2]
        where = f"column {time.column!r} (time)"
        if instant is None:
            wanted = f"a number of {time.unit}" if time.unit else "a time such as 2026-03-01 12:30:00"
            raise _Unreadable(f"{where} is {_short(value)}; it must be {wanted}")
        if time.unit:
            at_us = round(Decimal(str(value)) * _UNITS[time.unit])
        else:
            at_us = _epoch_us(value, int(instant), self._zone)
        if not 0 < at_us < _YEAR_9999_US:
            raise _Unreadable(f"{where} is {_short(value)}; it must be after 1970")
        return at_us

    def _label(self, row: tuple[Any, ...]) -> str:
        label = self._mapping.label
        if label is None:
            return ""
        value = self._value(label.column, row)
        return "fraud" if str(value).strip() in label.fraud else GENUINE


_YEAR_9999_US: Final = 253_370_764_800_000_000


def _epoch_us(value: Any, instant_us: int, zone: ZoneInfo) -> int:
    """Return an instant; `instant_us` is the value read as if it named UTC, unless it names its own zone."""
    if isinstance(value, str):
        try:
            read = datetime.fromisoformat(value.strip())
        except ValueError:
            # A form that DuckDB reads and Python does not.
            read = datetime.fromtimestamp(instant_us / 1_000_000, UTC).replace(tzinfo=None)
        if read.tzinfo is not None:
            return _microseconds(read)
    elif isinstance(value, datetime) and value.tzinfo is not None:
        return instant_us
    if zone.key == "UTC":
        return instant_us
    seconds, rest = divmod(instant_us, 1_000_000)
    local = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=zone)
    return int(local.timestamp()) * 1_000_000 + rest


def _microseconds(time: datetime) -> int:
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
