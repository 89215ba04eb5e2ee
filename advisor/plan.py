"""Recommendation -> Plan: which parts make up the script, and every number with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from . import parts
from .origin import Origin
from .profile import Profile, nearest

if TYPE_CHECKING:
    from .ranking import Recommendation, Strategy

FLIP_AXES = {
    "2d": {"up-down": 0, "left-right": 1},
    "3d": {"left-right": 0, "front-back": 1, "up-down": 2},  # RAS+ order
}
_OTHER = {"2d": "_3d", "3d": "_2d"}  # endings of settings that are for the other dimensionality
# what the side of an input must divide by: halvings of the network, or its patch
MULTIPLE = {
    "networks/segresnet": 8,
    "networks/segresnet_deep": 16,
    "networks/swin": 32,
    "networks/resnet": 1,
    "networks/resnet_normalised": 32,
}
_WEIGHTS = "starts/weights"
_SUMS = "networks/summed"
# settings that, above 0, put a part in the place of another; and what the page must hold for it
_FOCUS = {
    "foreground_share": ("data/pool", "data/pool_focused", {"tasks/crops", "data/volume3d"}),
    "mask_focus": ("methods/hiding_order", "methods/hiding_order_focused", set()),
}
_BACKGROUND = "The background counts as class 0."
_CLASSES = {  # how they are counted, and the fewest
    "segmentation": (_BACKGROUND, 2),
    "registration": (_BACKGROUND, 2),
    "detection": ("Classes of boxes count from 0; background is none of them.", 1),
}


class _Layout(NamedTuple):
    """What a task asks of the script beside its own part.

    Attributes:
        network: the CNN for it, if nothing else decides.
        grid: whether volumes are read whole or at one voxel size.
        more: further parts.
    """

    network: str
    grid: str
    more: tuple[str, ...] = ()


_LAYOUTS = {
    "classification": _Layout("networks/resnet", "data/grid_whole", ("tasks/single_label",)),
    "multi-label": _Layout("networks/resnet", "data/grid_whole", ("tasks/multi_label",)),
    "regression": _Layout("networks/resnet", "data/grid_whole"),
    "retrieval": _Layout("networks/resnet", "data/grid_whole"),
    "detection": _Layout("networks/resnet", "data/grid_spacing", ("tasks/precision",)),
    "segmentation": _Layout("networks/segresnet", "data/grid_spacing"),
    "registration": _Layout("networks/segresnet", "data/grid_whole"),
}


def _layout(profile: Profile) -> _Layout:
    several = profile.task == "classification" and profile.multilabel
    return _LAYOUTS["multi-label" if several else profile.task]


class PlanError(ValueError):
    """There is no script for this; the text says why and what to do."""


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
        parts: templates in page order, as "methods/mae".
        settings: values in page order.
        header: lines above the script: profile, reasons, what speaks against, provenance.
        origin: what the script is emitted from, so that it can be emitted again.
    """

    model_config = ConfigDict(frozen=True)
    method: str
    title: str
    dims: int
    parts: tuple[str, ...]
    settings: tuple[Planned, ...]
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
        PlanError: If there is no template for this method and profile, or no such setting.
    """
    from .explain import header_lines

    strategy = _strategy(recommendation, method)
    dimensionality = str(recommendation.facts.values["dimensionality"] or "2d")
    chosen = _parts(recommendation, strategy.method, dimensionality)
    video = dimensionality == "video"
    dimensionality = "2d" if video else dimensionality  # frames are pictures
    numbers = _numbers(recommendation, strategy, chosen, dimensionality)
    focus = _focus(chosen)
    wanted = {name for part in chosen for name in parts.part(part).settings} | focus.keys()
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
    for name, (plain, focused) in focus.items():
        if numbers[name].value > 0:
            chosen[chosen.index(plain)] = focused
        else:
            wanted.discard(name)
    settings = [
        Planned(name=name, value=n.value, why=n.why, source=n.source)
        for name, n in numbers.items()
        if name in wanted
    ]
    profile = recommendation.profile
    where = "on frames of videos" if video else f"in {dimensionality[0]}D"
    return Plan(
        method=strategy.method,
        title=f"{strategy.name} for {profile.modality} {profile.task} {where}.",
        dims=int(dimensionality[0]),
        parts=tuple(chosen),
        settings=tuple(settings),
        header=tuple(header_lines(recommendation, strategy.method)),
        origin=Origin(
            profile=profile.model_dump(exclude_none=True),
            method=strategy.method,
            changes=dict(overrides or {}),
            packs=tuple(pack.name for pack in recommendation.knowledge.packs),
        ),
    )


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


def _parts(recommendation: Recommendation, method: str, dimensionality: str) -> list[str]:
    """Templates in page order: data, views, network, method, task, loop, starts, protocol."""
    profile, common = recommendation.profile, recommendation.common
    volumes, layout = dimensionality == "3d", _layout(profile)
    own = parts.part(f"methods/{method}")
    network = _network(own, profile, volumes)
    kind = "data/volume3d" if volumes else "data/image2d"
    pictures = {"2d": "data/folder", "3d": "data/one_each", "video": "data/clip"}
    normalise = f"data/{common['intensity_mode'].value}"
    # masks and boxes lie on the whole image
    frame = "whole" if recommendation.facts.values["dense"] else common["frame"].value
    grid = layout.grid if volumes else f"data/frame_{frame}"
    data = [normalise, grid, kind, pictures[dimensionality]]
    views = ["views/geometry", f"views/{common['distort'].value}"]
    for name in (*data, *views):
        if not parts.exists(name):
            raise PlanError(
                f"{profile.modality}: its card names templates/{name}, which is not there"
            )
    if "quantity" not in parts.part(normalise).defines:
        data.insert(1, "data/rescaled")
    tasks = [*layout.more, f"tasks/{profile.task}"]
    asked = own.slots.union(*(parts.part(t).slots for t in tasks))
    if "placement" in asked:
        data.append("data/boxes3d" if volumes else "data/boxes2d")
    networks = [network, *_tops(network, asked)]
    page = ["data/manifest", *data, *views, *networks, f"methods/{method}", *tasks]
    preview = "preview_method" if "Method" in own.defines else "preview_views"
    report = f"report_{profile.task}"  # pictures of what was predicted, if there are any
    shown = [preview, report if parts.exists(report) else "report_plain"]
    page = _with_helpers([*page, "loop", *_starts(own, network), *shown, "protocol"])
    # what sums over all images needs them at once; other batches may be cut into pieces
    page.insert(page.index("loop"), f"loops/{'whole' if _SUMS in page else 'pieces'}")
    return page


def _focus(page: list[str]) -> dict[str, tuple[str, str]]:
    """Settings that may direct this page at what stands out: the part, and that in its place."""
    return {
        name: (plain, focused)
        for name, (plain, focused, needed) in _FOCUS.items()
        if {plain, *needed} <= set(page)
    }


def _tops(network: str, asked: frozenset[str]) -> list[str]:
    """What tasks and methods put on a network."""
    family = network.partition("_")[0]  # one for all kinds of a network
    tops = {
        "Decoder": f"{family}_decoder",
        "Pyramid": "networks/vit_pyramid" if family == "networks/vit" else "networks/pyramid",
    }
    return [part for name, part in tops.items() if name in asked]


def _network(own: parts.Part, profile: Profile, volumes: bool) -> str:
    """The network that the method names, else one that suits the problem."""
    if named := next((p for p in own.parts if p in _networks()), None):
        return named
    if _WEIGHTS in own.parts:  # a network for which weights are published
        vit = profile.backbone == "vit" or (
            profile.backbone != "cnn" and not volumes and "published" not in own.slots
        )
        pair = ("segresnet_deep", "swin") if volumes else ("resnet_normalised", "vit")
        return f"networks/{pair[vit]}"
    return "networks/vit" if profile.backbone == "vit" else _layout(profile).network


def _starts(own: parts.Part, network: str) -> list[str]:
    """What comes before fine-tuning, if the method itself does not bring it."""
    starts = {
        "data/pool": {"pool", "FIRST"},
        "starts/pretrain": {"FIRST"},
        "starts/compared": {"STARTS"},
    }
    chosen = [name for name, given in starts.items() if not given & own.defines]
    name = network.removeprefix("networks/")
    if _WEIGHTS in own.parts:
        chosen.append(f"starts/{name}")  # how published weights are named
    if "published" in own.slots:
        chosen.append(f"starts/published_{name.partition('_')[0]}")
    return chosen


def _with_helpers(page: list[str]) -> list[str]:
    """The page with every part that one of its parts names, just before its first use."""
    found: list[str] = []

    def add(name: str) -> None:
        for helper in parts.part(name).parts:
            if helper not in page and helper not in found:
                add(helper)
        found.append(name)

    for name in page:
        add(name)
    return found


def _networks() -> Mapping[str, Mapping[str, Any]]:
    from .knowledge import home
    from .reading import read

    content = read(home("rules") / "networks.yaml", "rules/networks.yaml")
    return {f"networks/{name}": settings for name, settings in content.items()}


def _numbers(
    recommendation: Recommendation, strategy: Strategy, chosen: list[str], dimensionality: str
) -> dict[str, _Number]:
    """Every value that a script may ask for, the method's own first."""
    network = next(p for p in chosen if p in _networks())
    numbers = {n: _Number(s.value, s.why, _source(s)) for n, s in strategy.settings.items()}
    for name, s in _networks()[network].items():
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
    if side := recommendation.profile.image_size:
        number = _Number(side, "The side that you gave.", "your answer")
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
        kept = tuple(f for f in fractions.value if f * for_training >= 1) or (1.0,)
        if kept != tuple(fractions.value):
            why = f"{fractions.why} Shares of {profile.labeled} cases below one case are left out."
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
