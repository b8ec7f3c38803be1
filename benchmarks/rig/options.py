"""Options of benches that hold more than one thing, read before anything runs; what is wrong is refused whole."""

import json
from collections.abc import Collection
from typing import Any

import typer
from pydantic import ValidationError

from contracts.problems import faults
from dfml.methods import METHODS


def listed(given: str) -> list[str]:
    """What stands between the commas, none twice."""
    return list(dict.fromkeys(filter(None, map(str.strip, given.split(",")))))


def named(given: str, known: Collection[str], *, option: str) -> list[str]:
    """Those of a comma list, in its order. Raises `typer.BadParameter` with every one that is not known, and all that are."""
    asked = listed(given)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        told = f"there is no {', '.join(unknown)}" if unknown else "it is empty"
        raise typer.BadParameter(f"{told}: choose from {', '.join(known)}", param_hint=option)
    return asked


def numbers(given: str, *, option: str) -> list[int]:
    """Those of a comma list, in its order. Raises `typer.BadParameter` with every one that is no positive whole number."""
    asked = listed(given)
    wrong = [one for one in asked if not one.isdecimal() or int(one) == 0]
    if wrong or not asked:
        raise typer.BadParameter(f"{', '.join(wrong) or 'nothing'}: give numbers such as 5120,20480", param_hint=option)
    return [int(one) for one in asked]


def by_method(given: str, *, option: str) -> dict[str, dict[str, Any]]:
    """Options by method, of JSON. Raises `typer.BadParameter` with every fault that a method finds in its own."""
    try:
        options = json.loads(given)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from error
    if not isinstance(options, dict):
        raise typer.BadParameter('give options by method, {"free": {"epochs": 100}}', param_hint=option)
    found = []
    for method, own in options.items():
        if method not in METHODS:
            found.append(f"{method}: there is no such method, choose from {', '.join(METHODS)}")
            continue
        try:
            METHODS[method].options.model_validate(own)
        except ValidationError as error:
            found += [f"{method}.{fault.field}: {fault.message}" for fault in faults(list(error.errors()))]
    if found:
        raise typer.BadParameter("; ".join(found), param_hint=option)
    return options
