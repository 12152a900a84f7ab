"""Live prices: what to ask AWS's price list, and how to read its answer. Pure."""

from __future__ import annotations

import json

# Regions that serve the price list; it speaks of all regions.
PRICING_REGIONS = ("us-east-1", "eu-central-1", "ap-south-1")
PRICING_FILTERS = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "licenseModel": "No License required",
}


def on_demand_price(product: str) -> float:
    """US dollars per hour from one product of the price list, as JSON. Raises ValueError when it has no such price.

    The path is terms.OnDemand.<offer>.priceDimensions.<rate>.pricePerUnit.USD, where both names are codes.
    """
    offers = json.loads(product).get("terms", {}).get("OnDemand", {})
    for offer in offers.values():
        for rate in offer.get("priceDimensions", {}).values():
            if rate.get("unit") == "Hrs" and (usd := rate.get("pricePerUnit", {}).get("USD")):
                return float(usd)
    raise ValueError("the price list has no price per hour in US dollars for it")
