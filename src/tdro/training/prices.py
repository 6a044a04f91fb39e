"""Energy and money of an estimate, from a price file that the user may replace."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from tdro.config import Section
from tdro.errors import ConfigError

NotNegative = Annotated[float, Field(ge=0)]


class MachinePrice(Section):
    """What an hour of a kind of machine takes."""

    device: str
    """Part of the device's name; `cpu` for machines without a GPU; empty for any."""
    watts: NotNegative
    """Watts under full load, cooling included."""
    per_hour: NotNegative
    """Price of an hour."""
    per: Literal["device", "core"] = "device"
    """What both numbers are for."""


class Prices(Section):
    """A price file."""

    currency: str = "USD"
    """Unit of the prices."""
    electricity_per_kwh: NotNegative = 0.0
    """Price of a kilowatt-hour, where it is paid beside the machine."""
    machines: tuple[MachinePrice, ...]
    """The first one that fits counts."""


@dataclass(frozen=True)
class Bill:
    """What a run takes.

    Attributes:
        kwh: Energy in kilowatt-hours.
        money: Price.
        currency: Its unit.
        assumed: What was multiplied, in words.
    """

    kwh: float
    money: float
    currency: str
    assumed: str


def read_prices(path: Path | None = None) -> Prices:
    """Read a price file; the one of the package, whose numbers are assumptions, where none is given.

    Raises:
        ConfigError: It cannot be read, or is no price file.
    """
    source = path or Path(str(files("tdro.training"))) / "prices.yaml"
    do = "copy the prices.yaml of the package and change its numbers; docs/estimate.md shows it"
    try:
        return Prices.model_validate(yaml.safe_load(source.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"{source}: {'.'.join(map(str, first['loc']))}"
        raise ConfigError(first["msg"], where=where, saw=first["input"], do=do) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        saw = str(error).splitlines()[0]
        raise ConfigError("price file cannot be read", where=source, saw=saw, do=do) from None


def bill(prices: Prices, device: str, cores: int, hours: float) -> Bill:
    """Compute energy and price of some hours on a device.

    Args:
        prices: The price file.
        device: Name of the GPU, or "cpu".
        cores: Cores that are used where there is no GPU.
        hours: Hours of one device; of several, added up.

    Example:
        >>> bill(read_prices(), "NVIDIA H100 80GB HBM3", 8, 2.0).money
        6.0

    Raises:
        ConfigError: The file has no entry for the device.
    """
    entry = next((m for m in prices.machines if m.device.lower() in device.lower()), None)
    if entry is None:
        do = 'add an entry with device: ""'
        raise ConfigError("the price file knows no such device", where="machines", saw=device, do=do)
    units = cores if entry.per == "core" else 1
    watts, price = entry.watts * units, entry.per_hour * units
    kwh = hours * watts / 1000
    assumed = f"{watts:g} W and {price:g} {prices.currency} per hour"
    if prices.electricity_per_kwh:
        assumed += f", {prices.electricity_per_kwh:g} {prices.currency} per kWh"
    return Bill(kwh, hours * price + kwh * prices.electricity_per_kwh, prices.currency, assumed)
