"""Phone numbers: one spelling of each, what may be shown of it, and under which marks budgets count it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import phonenumbers
from phonenumbers import NumberParseException, PhoneNumberFormat, PhoneNumberType

from riskgate_server.rpc.convert import invalid

PREFIX_DIGITS_CUT: Final = 3
"""Numbers that differ in no more than so many last digits are alike: who pumps messages buys them in a row."""
_SHOWN_DIGITS: Final = 4

_TAKES_MESSAGES: Final = frozenset(
    {
        PhoneNumberType.MOBILE,
        PhoneNumberType.FIXED_LINE_OR_MOBILE,
        PhoneNumberType.PERSONAL_NUMBER,
        PhoneNumberType.VOIP,
    }
)
"""All others cost the sender or reach nobody: premium rate, shared cost, toll free, pagers, voicemail, landlines."""


class Phone(msgspec.Struct, frozen=True, gc=False):
    """
    A number that takes messages. `region` is ISO 3166-1 alpha-2, or 001 of no country.

    Marks are keyed hashes of the number and of its prefix; `other_marks` are pairs of them under other keys.
    """

    number: str
    masked: str
    region: str
    mark: bytes
    prefix: bytes
    other_marks: tuple[tuple[bytes, bytes], ...] = ()


class PhoneBook:
    """Reads numbers. `fingerprints` hashes (tenant, kind, value) under secret keys, the one in force first."""

    def __init__(self, fingerprints: Callable[[str, str, str], tuple[bytes, ...]]) -> None:
        self._fingerprints = fingerprints

    def read(self, tenant_id: str, written: str) -> Phone:
        """
        Return the number, however it is spelled: with blanks, hyphens or brackets, after + or 00.

        Raises:
            InvalidRequest: it is no number of any country's plan, or one that takes no messages.
        """
        try:
            parsed = phonenumbers.parse("+" + written[2:] if written.startswith("00") else written, None)
        except NumberParseException as error:
            if error.error_type == NumberParseException.INVALID_COUNTRY_CODE:
                raise invalid("PHONE_NUMBER_REFUSED", "phone_number", "begins with a code of no country") from None
            raise invalid(
                "PHONE_NUMBER_REFUSED", "phone_number", "must be a number in international form, such as +8613812345678"
            ) from None
        if parsed.extension or not phonenumbers.is_valid_number(parsed):
            raise invalid("PHONE_NUMBER_REFUSED", "phone_number", "is no number that is in use anywhere")
        if phonenumbers.number_type(parsed) not in _TAKES_MESSAGES:
            raise invalid("PHONE_NUMBER_REFUSED", "phone_number", "takes no messages, or charges for them")
        number = phonenumbers.format_number(parsed, PhoneNumberFormat.E164)
        marks = self._fingerprints(tenant_id, "phone", number)
        prefixes = self._fingerprints(tenant_id, "phone prefix", number[:-PREFIX_DIGITS_CUT])
        (mark, prefix), *others = zip(marks, prefixes, strict=True)
        return Phone(
            number=number,
            masked=_masked(parsed),
            region=phonenumbers.region_code_for_number(parsed) or "001",
            mark=mark,
            prefix=prefix,
            other_marks=tuple(others),
        )


def _masked(parsed: phonenumbers.PhoneNumber) -> str:
    """Write a number as its owner knows it again and nobody can call it."""
    return masked_by(phonenumbers.national_significant_number(parsed)[-_SHOWN_DIGITS:])


def masked_by(last_digits: str) -> str:
    """Return a masked number, of any country, by its last four digits: what else it showed would tell decoys."""
    return f"*** **** {last_digits}"
