"""Mappings and what is read through them: clear about what is wrong, exact about money and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
from scripts.streaming.history import BadRow, History, HistoryUnusable
from scripts.streaming.mapping import Mapping, MappingInvalid, load_mapping, read_mapping
from scripts.streaming.purchase import GENUINE, Purchase

MAPPINGS = Path(__file__).parents[2] / "scripts" / "mappings"

LEAST: dict[str, Any] = {
    "columns": {"time": "at", "customer_id": "who", "amount": "price", "merchant_id": "shop"},
    "line": {"currency": "EUR", "limit": 100_000},
}


def mapping(**changes: Any) -> Mapping:
    content = {**LEAST, **changes}
    content["columns"] = {**LEAST["columns"], **changes.get("columns", {})}
    content["line"] = {**LEAST["line"], **changes.get("line", {})}
    return read_mapping(content, "mapping.yaml")


def csv(tmp_path: Path, *lines: str, heading: str = "at,who,price,shop") -> Path:
    path = tmp_path / "history.csv"
    path.write_text("\n".join((heading, *lines)) + "\n", "utf-8")
    return path


def rows(path: Path, through: Mapping, **bounds: int) -> list[Purchase | BadRow]:
    history = History(path, through)
    try:
        return list(history.rows(**bounds))
    finally:
        history.close()


def purchase(path: Path, through: Mapping) -> Purchase:
    (row,) = rows(path, through)
    assert isinstance(row, Purchase), row
    return row


def problem(path: Path, through: Mapping) -> str:
    (row,) = rows(path, through)
    assert isinstance(row, BadRow), row
    return str(row)


@pytest.mark.parametrize("name", [path.name for path in sorted(MAPPINGS.glob("*.yaml"))])
def test_every_mapping_we_ship_is_valid(name: str) -> None:
    load_mapping(MAPPINGS / name)


def test_the_example_reads_its_example() -> None:
    found = rows(MAPPINGS / "example.csv", load_mapping(MAPPINGS / "example.yaml"))

    assert len(found) == 8
    first, last = found[0], found[-1]
    assert isinstance(first, Purchase)
    assert isinstance(last, Purchase)
    assert (first.customer_id, first.amount_minor, first.category_code) == ("customer-0007", 1850, "5812")
    assert first.at_us == 1_772_410_360_000_000
    assert first.limit_minor == 300_000
    assert (first.label, last.label) == (GENUINE, "fraud")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": {"colour": "x"}}, "unknown field `colour`"),
        ({"columns": {"device_id": {"column": "a", "constant": "b"}}}, "columns.device_id needs either"),
        ({"columns": {"customer_id": {"constant": "me"}}}, "columns.customer_id must come from a column"),
        ({"columns": {"latitude": "lat"}}, "go together"),
        ({"columns": {"time": {"column": "at", "time_zone": "Mars/Olympus"}}}, "'Mars/Olympus' is not in the IANA"),
        ({"line": {"currency": "XXZ"}}, "'XXZ' is not in ISO 4217"),
        ({"line": {"limit": 0}}, "line.limit"),
        ({"captures": {"when": "sometimes"}}, "captures.when"),
        ({"repayment": {"day_of_month": 31}}, "repayment.day_of_month"),
    ],
)
def test_a_bad_mapping_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MappingInvalid) as refused:
        mapping(**changes)

    assert said in str(refused.value)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-01,a,1,s")

    with pytest.raises(HistoryUnusable) as refused:
        History(path, mapping(columns={"amount": "cost"}))

    assert "columns.amount is to come from column 'cost'; the file has at, who, price, shop" in str(refused.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("yesterday,a,1,s", "row 1 of the file: column 'at' (time) is 'yesterday'"),
        ("2026-03-01 10:00,a,cheap,s", "column 'price' (amount) is 'cheap'; it must be a number"),
        ("2026-03-01 10:00,a,-5,s", "column 'price' (amount) is '-5'; it must be 0 or more"),
        ("2026-03-01 10:00,a,nan,s", "it must be 0 or more"),
        ("2026-03-01 10:00,a,1.999,s", "it has more digits than the currency"),
        ("2026-03-01 10:00,a,99999999999999999,s", "at most 10^15"),
        ("2026-03-01 10:00,,1,s", "column 'who' (customer_id) is empty"),
        ("2026-03-01 10:00,a b,1,s", "column 'who' (customer_id) is 'a b'; it must be an id"),
        ("2026-03-01 10:00,a,1,", "column 'shop' (merchant_id) is empty"),
    ],
)
def test_a_bad_row_names_row_and_column(tmp_path: Path, line: str, said: str) -> None:
    assert said in problem(csv(tmp_path, line), mapping())


def test_a_bad_row_spoils_only_itself(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-01,a,1,s", "2026-03-02,a,much,s", "2026-03-03,a,3,s")

    found = rows(path, mapping())

    assert [type(row) for row in found] == [Purchase, BadRow, Purchase]


def test_rows_come_in_order_of_time(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-03,a,3,s", "2026-03-01,a,1,s", "2026-03-02,a,2,s")

    assert [row.amount_minor for row in rows(path, mapping()) if isinstance(row, Purchase)] == [100, 200, 300]


def test_reading_goes_on_after_a_position(tmp_path: Path) -> None:
    path = csv(tmp_path, *(f"2026-03-{day:02},a,{day},s" for day in range(1, 11)))

    later = rows(path, mapping(), after=4, limit=7)

    assert [row.number for row in later] == [5, 6, 7]
    assert later == rows(path, mapping())[4:7]


def test_floats_are_the_amount_they_show(tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    written = (
        f"COPY (SELECT TIMESTAMP '2026-03-01 10:00' AS at, 7 AS who, 57.16::DOUBLE AS price, 3 AS shop) TO '{path}'"
    )
    duckdb.execute(written)

    found = purchase(path, mapping(columns={"customer_id": {"column": "who", "prefix": "card-"}}))

    assert (found.customer_id, found.amount_minor) == ("card-7", 5716)


def test_minor_units_and_currencies_without_them(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-01,a,500,s")

    assert purchase(path, mapping(line={"currency": "JPY"})).amount_minor == 500
    assert purchase(path, mapping(columns={"amount": {"column": "price", "unit": "minor"}})).amount_minor == 500


def test_times_without_zone_are_in_the_zone_of_the_mapping(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-01 08:00:00,a,1,s")
    shanghai = mapping(columns={"time": {"column": "at", "time_zone": "Asia/Shanghai"}})

    assert purchase(path, shanghai).at_us == purchase(path, mapping()).at_us - 8 * 3_600_000_000


def test_times_with_a_zone_keep_it(tmp_path: Path) -> None:
    shanghai = mapping(columns={"time": {"column": "at", "time_zone": "Asia/Shanghai"}})

    assert purchase(csv(tmp_path, "2026-03-01T08:00:00+00:00,a,1,s"), shanghai).at_us == 1_772_352_000_000_000


def test_times_may_be_counted(tmp_path: Path) -> None:
    counted = mapping(columns={"time": {"column": "at", "unit": "seconds"}})

    assert purchase(csv(tmp_path, "1772352000.25,a,1,s"), counted).at_us == 1_772_352_000_250_000


def test_a_query_may_join_and_compute(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-01,a,1,s", "2026-03-02,b,2,s")
    doubled = mapping(query="SELECT \"at\", who, price::DECIMAL(18, 2) * 2 AS price, shop FROM data WHERE who = 'b'")

    assert purchase(path, doubled).amount_minor == 400


def test_ids_are_derived_from_the_place_when_there_are_none(tmp_path: Path) -> None:
    path = csv(tmp_path, "2026-03-01,a,1,s", "2026-03-01,a,1,s")

    first, second = rows(path, mapping())

    assert isinstance(first, Purchase)
    assert isinstance(second, Purchase)
    assert first.transaction_id != second.transaction_id
