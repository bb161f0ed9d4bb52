"""
A city that does not exist: people with habits, phones and credit lines, shops, and thieves.

`build` is a pure function of its `CitySpec`: the same spec gives the same purchases, byte for byte,
and a customer keeps their habits when the number of customers changes.
"""

from __future__ import annotations

from scripts.city.model import City, CitySpec, Customer, Merchant, Place, Purchase, Scenario
from scripts.city.town import build

__all__ = ["City", "CitySpec", "Customer", "Merchant", "Place", "Purchase", "Scenario", "build"]
