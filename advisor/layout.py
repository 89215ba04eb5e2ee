"""Which templates make up a script: for the method, the images, the network and the task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from . import parts
from .profile import Profile

if TYPE_CHECKING:
    from .answer import Recommendation

_CROP = "views/crop"
_WEIGHTS = "starts/weights"
_SUMS = "networks/summed"
# the page: what people come for stands first, machinery last
_ORDER = "methods networks views tasks data plumbing loops loop starts protocol".split()
# settings that, above 0, put a part in the place of another; and what the page must hold for it
_SWITCHES = {
    "foreground_share": ("data/pool", "data/pool_focused", {"tasks/crops", "data/volume3d"}),
    "mask_focus": ("methods/hiding_order", "methods/hiding_order_focused", set()),
    "shard_optimizer": ("loops/optimizer", "loops/optimizer_sharded", set()),
}
# settings that, above 0, add what reads the user's priors and goes by them
_PRIOR = {"prior_share", "mask_prior"}
_REGIONS = {"tasks/crops", "data/volume3d"}  # volumes of which regions are read


class PlanError(ValueError):
    """There is no script for this; the text says why and what to do."""


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
    "detection": _Layout(
        "networks/resnet", "data/grid_spacing", ("tasks/own_target", "tasks/precision")
    ),
    "segmentation": _Layout("networks/segresnet", "data/grid_spacing"),
    "registration": _Layout("networks/segresnet", "data/grid_whole", ("tasks/own_target",)),
}


def _layout(profile: Profile) -> _Layout:
    several = profile.task == "classification" and profile.multilabel
    return _LAYOUTS["multi-label" if several else profile.task]


def page_of(recommendation: Recommendation, method: str, dimensionality: str) -> list[str]:
    """Templates in page order: method, network, views, task, data, loop, starts, protocol.

    Args:
        recommendation: The answer for a profile.
        method: Id of a method that has a template.
        dimensionality: `2d`, `3d` or `video`.

    Raises:
        PlanError: If the modality's card names a template that is not there.
    """
    profile, common = recommendation.profile, recommendation.common
    volumes, layout = dimensionality == "3d", _layout(profile)
    own = parts.part(_method(method, profile, volumes))
    network = _network(own, profile, volumes)
    kind = "data/volume3d" if volumes else "data/image2d"
    planar = f"data/{common['pictures'].value}"
    pictures = {"2d": planar, "3d": "data/one_each", "video": "data/clip"}
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
    page = [own.name, *networks, *views, *tasks, "data/manifest", *data]
    found = _with_helpers([*page, "loop", *_starts(own, network), "protocol"])
    if any("crop" in parts.part(name).slots for name in found):
        found.insert(found.index(views[0]) + 1, _CROP)
    # what sums over all images needs them at once; other batches may be cut into pieces
    found += ["loops/optimizer", f"loops/{'whole' if _SUMS in found else 'pieces'}"]

    def place(name: str) -> int:
        folder = name.partition("/")[0]
        helps = folder == "networks" and name not in page
        return _ORDER.index("plumbing" if helps else folder)

    return sorted(found, key=place)


def switches_of(page: list[str]) -> set[str]:
    """Settings that may put other parts on this page, or more of them.

    Args:
        page: Names of templates.
    """
    needed = {name: {plain, *more} for name, (plain, _, more) in _SWITCHES.items()}
    found = {name for name, parts_needed in needed.items() if parts_needed <= set(page)}
    if "data/pool" in page:
        if "methods/hiding_order" in page:
            found.add("mask_prior")
        if _REGIONS <= set(page) or _by_crop(page):
            found.add("prior_share")
    return found


def _by_crop(page: list[str]) -> bool:
    """Whether `crop` alone cuts views, so that another one may go by priors."""
    methods = (parts.part(name) for name in page if name.startswith("methods/"))
    cutting = {slot for method in methods for slot in method.slots & {"random_affine", "sample"}}
    return _CROP in page and not cutting


def switched(page: list[str], chosen: set[str]) -> list[str]:
    """The page with the parts that these of its settings switch on.

    Args:
        page: Names of templates.
        chosen: Some of `switches_of(page)`.
    """
    swaps = {plain: other for name, (plain, other, _) in _SWITCHES.items() if name in chosen}
    added = []
    if chosen & _PRIOR:
        added = [part for part in ("data/paired", "data/prior") if part not in page]
        regions = _REGIONS <= set(page)
        if regions:  # those with a prior are cut apart from the others
            added.append("data/prior_regions")
        if not regions or "mask_prior" in chosen:
            added.append("data/prior_channel")
            around = "prior_share" in chosen and not regions
            swaps[_CROP] = "views/crop_around" if around else "views/crop_both"
            swaps["data/frame_lit"] = "data/frame_whole"  # a prior lies on the whole picture
        if "mask_prior" in chosen:
            added.append("methods/prior_masks")
    directed = [swaps.get(name, name) for name in page]
    after = directed.index(swaps.get("data/pool", "data/pool")) + 1 if added else 0
    return directed[:after] + added + directed[after:]


def _tops(network: str, asked: frozenset[str]) -> list[str]:
    """What tasks and methods put on a network."""
    family = network.partition("_")[0]  # one for all kinds of a network
    tops = {
        "Decoder": f"{family}_decoder",
        "Pyramid": "networks/vit_pyramid" if family == "networks/vit" else "networks/pyramid",
    }
    return [part for name, part in tops.items() if name in asked]


def _method(method: str, profile: Profile, volumes: bool) -> str:
    """The method's template: that for U-Nets, if there is one and no transformer suits better."""
    name, unet = f"methods/{method}", f"methods/{method}_unet"
    dense = profile.task in ("segmentation", "detection")
    chosen = profile.backbone == "cnn" or (profile.backbone != "vit" and volumes and dense)
    return unet if chosen and parts.exists(unet) else name


def _network(own: parts.Part, profile: Profile, volumes: bool) -> str:
    """The network that the method names, else one that suits the problem."""
    if named := next((p for p in own.parts if p in networks()), None):
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
    """The page with every part that one of its parts names, before its first use."""
    found: list[str] = []

    def add(name: str) -> None:
        for helper in parts.part(name).parts:
            if helper not in page and helper not in found:
                add(helper)
        found.append(name)

    for name in page:
        add(name)
    return found


@cache
def networks() -> Mapping[str, Mapping[str, Any]]:
    """The settings of each network, by the name of its template."""
    from .knowledge import home
    from .reading import read

    content = read(home("rules") / "networks.yaml", "rules/networks.yaml")
    return {f"networks/{name}": settings for name, settings in content.items()}
