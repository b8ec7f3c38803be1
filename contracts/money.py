"""Money: decimal strings on the wire, whole millionths of the currency's unit inside, so that nothing is lost in between."""

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

MICRO = 1_000_000
DEAREST = 10_000  # units per 1,000 images: what scripts multiply stays exact in float64


def micro(amount: str) -> int:
    """Millionths of a unit in `amount`, a `Money`."""
    return int(Decimal(amount) * MICRO)


def told(amount: int) -> str:
    """Millionths as a decimal string: at least two decimals, no more than needed."""
    whole, rest = divmod(amount, MICRO)
    return f"{whole}.{f'{rest:06}'.rstrip('0'):0<2}"


def _affordable(price: str) -> str:
    if micro(price) > DEAREST * MICRO:
        raise ValueError(f"must be at most {DEAREST} per 1,000 images")
    return price


Money = Annotated[str, StringConstraints(pattern=r"^\d{1,9}(\.\d{1,6})?$")]
"""An amount such as `12.50`, with six decimals at most."""
Price = Annotated[Money, AfterValidator(_affordable)]
"""What 1,000 images cost."""
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
"""ISO 4217, such as `EUR`."""
