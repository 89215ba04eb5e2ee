"""Values, profiles and conditions in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .page import plain
from .profile import Profile

_RANGES = {"gte": "{} or more", "gt": "more than {}", "lte": "{} or less", "lt": "less than {}"}


def value(raw: Any) -> str:
    """A value in words: yes, no, unknown, a list, or the number without needless zeros.

    Args:
        raw: Any scalar or sequence of scalars.
    """
    if raw is None:
        return "unknown"
    if isinstance(raw, bool):
        return "yes" if raw else "no"
    if isinstance(raw, float):
        return f"{raw:g}" if abs(raw) < 1e6 else f"{raw:,.0f}".replace(",", "")
    if isinstance(raw, list | tuple):
        return ", ".join(value(v) for v in raw) or "none"
    return plain(raw)


def options(profile: Profile) -> str:
    """The command-line options that give this profile again.

    Args:
        profile: The answers; unknown ones are left out.
    """
    given = profile.model_dump(exclude_none=True).items()
    return " ".join(f"--{n.replace('_', '-')} {shlex.quote(value(v))}" for n, v in given)


def condition(when: Mapping[str, Any]) -> str:
    """The condition of a rule in words.

    Args:
        when: The mapping as written in the rule.
    """
    said = [_test(name, test) for name, test in when.items() if name != "any"]
    if "any" in when:
        said.append("(" + ", or ".join(condition(each) for each in when["any"]) + ")")
    return " and ".join(said)


def _test(name: str, test: Any) -> str:
    if not isinstance(test, dict):
        return (
            f"{name} is {' or '.join(map(value, test)) if isinstance(test, list) else value(test)}"
        )
    said = []
    for op, limit in test.items():
        if op == "not":
            each = limit if isinstance(limit, list) else [limit]
            said.append(f"known and not {' or '.join(map(value, each))}")
        else:
            said.append(_RANGES[op].format(value(limit)))
    return f"{name} is {' and '.join(said)}"


def reads(when: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether a condition tests one of these facts.

    Args:
        when: The mapping as written in the rule.
        names: Names of facts.
    """
    wanted = set(names)
    return bool(wanted & when.keys()) or any(reads(each, wanted) for each in when.get("any", []))


def mentions(when: Mapping[str, Any], modality: str) -> bool:
    """Whether a condition names a modality.

    Args:
        when: The mapping as written in the rule.
        modality: Its id.
    """
    test = when.get("modality")
    here = modality == test or (isinstance(test, list) and modality in test)
    return here or any(mentions(each, modality) for each in when.get("any", []))
