"""Recommendation -> Plan: which parts make up the script, and every number with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from . import parts
from .knowledge import home
from .layout import PlanError, networks, page_of, switched, switches_of
from .origin import Origin
from .profile import nearest
from .ranges import Limit, Range, limits, ranges_of

if TYPE_CHECKING:
    from .ranking import Recommendation, Strategy

__all__ = ["Plan", "PlanError", "Planned", "make_plan"]

FLIP_AXES = {
    "2d": {"up-down": 0, "left-right": 1},
    "3d": {"left-right": 0, "front-back": 1, "up-down": 2},  # RAS+ order
}
_OTHER = {"2d": "_3d", "3d": "_2d"}  # endings of settings that are for the other dimensionality
_UNET = "_unet"  # ending of settings for the template of a method that is for U-Nets
# what the side of an input must divide by: halvings of the network, or its patch
MULTIPLE = {
    "networks/segresnet": 8,
    "networks/segresnet_deep": 16,
    "networks/swin": 32,
    "networks/resnet": 1,
    "networks/resnet_normalised": 32,
}
_BACKGROUND = "The background counts as class 0."
_CLASSES = {  # how they are counted, and the fewest
    "segmentation": (_BACKGROUND, 2),
    "registration": (_BACKGROUND, 2),
    "detection": ("Classes of boxes count from 0; background is none of them.", 1),
}


class Planned(BaseModel):
    """One value of the script's settings block.

    Attributes:
        name: as in the script and on its command line.
        value: a number, a text or a tuple of them.
        why: one sentence.
        source: citations and rule ids, or "your answer".
    """

    model_config = ConfigDict(frozen=True)
    name: str
    value: bool | int | float | str | tuple[int | float | str, ...]
    why: str
    source: str


class Plan(BaseModel):
    """Everything that `render` needs.

    Attributes:
        method: id of the method.
        title: first line of the script's docstring.
        dims: 2 or 3.
        target: the column of the manifest that the task asks for.
        parts: templates in page order, as "methods/mae".
        settings: values in page order.
        limits: what they may be.
        header: lines above the script: profile, reasons, what speaks against, provenance.
        origin: what the script is emitted from, so that it can be emitted again.
    """

    model_config = ConfigDict(frozen=True)
    method: str
    title: str
    dims: int
    target: str
    parts: tuple[str, ...]
    settings: tuple[Planned, ...]
    limits: tuple[Limit, ...]
    header: tuple[str, ...]
    origin: Origin


class _Number(NamedTuple):
    value: Any
    why: str
    source: str


def make_plan(
    recommendation: Recommendation,
    method: str | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Plans the script for a method, by default the best-ranked one that has a template.

    Args:
        recommendation: The answer for a profile.
        method: Id of another method.
        overrides: Settings by name, as text ("0.6", "0.1,1.0"); they replace the advised values.

    Raises:
        PlanError: If there is no template for this method and profile, no such setting, or if one
            is out of its range.
    """
    from .explain import header_lines

    strategy = _strategy(recommendation, method)
    dimensionality = str(recommendation.facts.values["dimensionality"] or "2d")
    chosen = page_of(recommendation, strategy.method, dimensionality)
    video = dimensionality == "video"
    dimensionality = "2d" if video else dimensionality  # frames are pictures
    numbers = _numbers(recommendation, strategy, chosen, dimensionality)
    switches = switches_of(chosen)
    wanted = _asked(chosen) | switches
    if missing := sorted(wanted - numbers.keys()):
        raise PlanError(
            f"{strategy.method}: no value for the setting {missing[0]!r}: add it to "
            f"rules/methods/{strategy.method}.yaml, to the physics of "
            f"rules/modalities/{recommendation.profile.modality}.yaml or to rules/protocol.yaml"
        )
    for name, text in (overrides or {}).items():
        if name not in wanted:
            close = nearest(name, sorted(wanted))
            raise PlanError(f"--set {name}: there is no such setting{close}")
        numbers[name] = _Number(_like(numbers[name].value, name, text), "Set by you.", "--set")
    chosen = switched(chosen, {name for name in switches if numbers[name].value > 0})
    wanted = _asked(chosen)
    settings = [
        Planned(name=name, value=n.value, why=n.why, source=n.source)
        for name, n in numbers.items()
        if name in wanted
    ]
    ranges = ranges_of(chosen, home("rules"))
    _in_range(settings, ranges)
    profile = recommendation.profile
    where = "on frames of videos" if video else f"in {dimensionality[0]}D"
    return Plan(
        method=strategy.method,
        title=f"{strategy.name} for {profile.modality} {profile.task} {where}.",
        dims=int(dimensionality[0]),
        target=_target(chosen),
        parts=tuple(chosen),
        settings=tuple(settings),
        limits=limits((s.name for s in settings), ranges),
        header=tuple(header_lines(recommendation, strategy.method)),
        origin=Origin(
            profile=profile.model_dump(exclude_none=True),
            method=strategy.method,
            changes=dict(overrides or {}),
            packs=tuple(pack.name for pack in recommendation.knowledge.packs),
        ),
    )


def _in_range(settings: Iterable[Planned], ranges: Mapping[str, Range]) -> None:
    values = {setting.name: setting.value for setting in settings}
    for setting in settings:
        name, value = setting.name, setting.value
        if name in ranges and not ranges[name].holds(value, values):
            shown = " ".join(map(str, value if isinstance(value, tuple) else str(value).split()))
            given = "--set " * (setting.source == "--set")
            raise PlanError(f"{given}{name}={shown}: must be {ranges[name].words()}")


def _target(chosen: Iterable[str]) -> str:
    """The column of the manifest that the task asks for."""
    bodies = (parts.part(name).body for name in chosen)
    found = (re.search(r'^TARGET = "(.+)"$', body, re.MULTILINE) for body in bodies)
    return next(match[1] for match in found if match)


def _strategy(recommendation: Recommendation, method: str | None) -> Strategy:
    by_id = {s.method: s for s in recommendation.strategies}
    if method is None:
        emitting = [s for s in recommendation.strategies if s.emits]
        if not emitting:
            raise PlanError(
                f"no method with a script template fits {recommendation.profile.task} here; "
                "`medssl methods` shows what each template covers"
            )
        return emitting[0]
    if method in by_id and by_id[method].emits:
        return by_id[method]
    for out in recommendation.ruled_out:
        if out.method == method:
            raise PlanError(f"{method} is ruled out here: {out.because}")
    if method in by_id:
        fits = ", ".join(s.method for s in recommendation.strategies if s.emits) or "none"
        raise PlanError(
            f"{method}: there is no script template for this problem; there is for: {fits}"
        )
    raise PlanError(f"there is no method {method!r}{nearest(method, sorted(by_id))}")


def _asked(page: list[str]) -> set[str]:
    """Settings that these parts read."""
    return {name for part in page for name in parts.part(part).settings}


def _numbers(
    recommendation: Recommendation, strategy: Strategy, chosen: list[str], dimensionality: str
) -> dict[str, _Number]:
    """Every value that a script may ask for, the method's own first."""
    network = next(p for p in chosen if p in networks())
    own = {n: _Number(s.value, s.why, _source(s)) for n, s in strategy.settings.items()}
    unet = {n.removesuffix(_UNET): v for n, v in own.items() if n.endswith(_UNET)}
    numbers = own | (unet if f"methods/{strategy.method}{_UNET}" in chosen else {})
    for name, s in networks()[network].items():
        if not name.endswith(_OTHER[dimensionality]):
            short = re.sub("_[23]d$", "", name)
            numbers[short] = _Number(s["value"], s["why"], s["source"])
    common = {
        re.sub("_[23]d$", "", n): _Number(s.value, s.why, _source(s))
        for n, s in recommendation.common.items()
        if not n.endswith(_OTHER[dimensionality])
    }
    numbers |= dict(_sizes(recommendation, common, network, numbers, dimensionality))
    numbers |= dict(_answers(recommendation, common, dimensionality))
    return numbers | {n: v for n, v in common.items() if n not in numbers}


def _source(setting: Any) -> str:
    given = (setting.rule and f"rule {setting.rule}", setting.source)
    return "; ".join(dict.fromkeys(part for part in given if part))


def _sizes(
    recommendation: Recommendation,
    common: Mapping[str, _Number],
    network: str,
    numbers: Mapping[str, _Number],
    dimensionality: str,
) -> Iterator[tuple[str, _Number]]:
    """`size`, the side of what the network sees."""
    number = common["crop_size" if dimensionality == "3d" else "image_size"]
    side = recommendation.profile.image_size
    if side and side < number.value:
        number = _Number(side, "The side of your images.", "your answer")
    multiple = numbers["patch_size"].value if "patch_size" in numbers else MULTIPLE[network]
    if recommendation.profile.task == "detection":
        multiple = math.lcm(multiple, 32)  # the stride of the coarsest anchors
    least = 2 * multiple if network == "networks/swin" else multiple
    rounded = max(least, round(number.value / multiple) * multiple)
    exact = rounded == number.value
    why = number.why if exact else f"{number.why} Rounded to a multiple of {multiple}."
    yield "size", _Number(rounded, why, number.source)


def _answers(
    recommendation: Recommendation, common: Mapping[str, _Number], dimensionality: str
) -> Iterator[tuple[str, _Number]]:
    """Values that follow from the profile."""
    profile = recommendation.profile
    axes = FLIP_AXES[dimensionality]
    flips = common["flips"]
    yield "flip_axes", flips._replace(value=tuple(axes[f] for f in flips.value if f in axes))
    if profile.batch_size:
        yield "batch_size", _Number(profile.batch_size, "The batch that you gave.", "your answer")
    counted, least = _CLASSES.get(profile.task, ("Classes count from 0.", 2))
    if profile.classes:
        yield "classes", _Number(profile.classes, counted, "your answer")
    else:
        yield "classes", _Number(least, f"You did not say how many. {counted}", "choice")
    frozen = profile.adaptation == "frozen"
    why = "Only the layers on top learn." if frozen else "The whole network learns."
    source = "your answer" if profile.adaptation else "choice"
    yield "adaptation", _Number(profile.adaptation or "finetune", why, source)
    yield "split", _Number("test", "Choose settings on val, report on test.", "choice")
    fractions = common["label_fractions"]
    if profile.labeled:
        for_training = profile.labeled * (1 - float(common["test_share"].value))
        least = profile.classes or 1
        kept = tuple(f for f in fractions.value if f * for_training >= least) or (1.0,)
        if kept != tuple(fractions.value):
            each = " a class" * (least > 1)
            why = f"{fractions.why} Shares of {profile.labeled} below one case{each} are left out."
            fractions = fractions._replace(value=kept, why=why)
    yield "label_fractions", fractions._replace(value=tuple(map(float, fractions.value)))


def _like(value: Any, name: str, text: str) -> Any:
    """`text` as the type of `value`."""
    try:
        if isinstance(value, tuple):
            kind = type(value[0]) if value else int
            return tuple(kind(word) for word in text.replace(",", " ").split())
        return type(value)(text)
    except ValueError:
        kind = type(value[0] if isinstance(value, tuple) and value else value)
        expected = f"a value of type {kind.__name__} is expected"
        raise PlanError(f"--set {name}={text}: {expected}") from None
