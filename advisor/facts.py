"""From answers to facts: the flat names that rules may test, each with the reason for its value.

A fact that cannot be told is `None`; it is never guessed, and a rule may test for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from .cards import Bands, ModalityCard
from .checkpoints import Checkpoint
from .profile import Profile, questions

Fact = bool | int | float | str | None
Kind = Literal["number", "truth"] | tuple[str, ...]  # a tuple holds the possible words

DENSE_TASKS = ("segmentation", "detection", "registration")
_DERIVED: dict[str, Kind] = {
    "channels": "number",
    "colour": "truth",
    "has_checkpoint": ("none", "restricted", "permissive"),
    "checkpoint_readable": "truth",
    "dense": "truth",
    "label_fraction": "number",
    "pool_ratio": "number",
    "cases": "number",
    "pool": "number",
    "gpu_hours": "number",
}


class Facts(BaseModel):
    """Values by name, and why each is what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    values: dict[str, Fact]
    reasons: dict[str, str]


class Cards(Protocol):
    """What facts need of the knowledge."""

    @property
    def modalities(self) -> Mapping[str, ModalityCard]:
        """Modality cards by id."""

    @property
    def bands(self) -> tuple[Bands, ...]:
        """Numbers cut into named ranges."""

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Public weights of all modalities."""


def kinds(modalities: Iterable[str], bands: Iterable[Bands]) -> dict[str, Kind]:
    """Every fact that can be tested, with what it may hold.

    Args:
        modalities: Ids of the modality cards.
        bands: The bands of `rules/facts.yaml`.
    """
    found: dict[str, Kind] = {"modality": tuple(modalities)}
    for asked in questions()[1:]:
        if asked.kind == "choice":
            found[asked.name] = asked.choices
        else:
            found[asked.name] = "truth" if asked.kind == "yes-no" else "number"
    found.update(_DERIVED)
    found.update({b.fact: tuple(band.name for band in b.bands) for b in bands})
    return found


def derive(profile: Profile, knowledge: Cards) -> Facts:
    """All facts of a profile.

    Args:
        profile: The answers; its modality must have a card.
        knowledge: The modality cards, the bands and the public weights.

    Returns:
        One value and one reason for each name of `kinds`.
    """
    card = knowledge.modalities[profile.modality]
    values: dict[str, Fact] = profile.model_dump()
    reasons = {n: "not answered" if v is None else "answered" for n, v in values.items()}
    told = [_dimensionality(profile, card), *_of_card(profile, card), *_of_counts(profile)]
    usable = _usable(profile, card, knowledge.checkpoints)
    told.append(("has_checkpoint", *_checkpoint(profile, card, usable)))
    told.append(("checkpoint_readable", *_readable(usable)))
    for name, value, reason in told:
        values[name], reasons[name] = value, reason
    for bands in knowledge.bands:
        values[bands.fact], reasons[bands.fact] = band(bands, values.get(bands.source_fact))
    return Facts(values=values, reasons=reasons)


def band(bands: Bands, number: Fact) -> tuple[str | None, str]:
    """The named range in which a number lies, and the reason in words.

    Args:
        bands: The ranges, ascending; `below` itself belongs to the next range.
        number: The number, or None where unknown.
    """
    if not isinstance(number, int | float):
        return None, f"{bands.source_fact} is unknown"
    low = None
    for each in bands.bands:
        if each.below is None or number < each.below:
            least = "" if low is None else f", {low:g} or more"
            most = "" if each.below is None else f", below {each.below:g}"
            return each.name, f"{bands.source_fact} is {number:g}{least}{most}"
        low = each.below
    return None, f"{bands.source_fact} is {number:g}, beyond every band"


Told = tuple[str, Fact, str]


def _dimensionality(profile: Profile, card: ModalityCard) -> Told:
    if profile.dimensionality is not None:
        return "dimensionality", profile.dimensionality, "answered"
    return "dimensionality", card.dimensionality[0], f"not answered; usual for {card.name}"


def _of_card(profile: Profile, card: ModalityCard) -> Iterable[Told]:
    channels = card.channels.value
    yield "channels", channels, card.channels.why
    yield "colour", channels == 3, f"{card.name}: {channels} channel{'s' * (channels > 1)}"
    yield "dense", profile.task in DENSE_TASKS, f"the task is {profile.task}"


def _usable(
    profile: Profile, card: ModalityCard, everything: Iterable[Checkpoint]
) -> list[Checkpoint]:
    """The known in-domain weights that the user may use."""
    if profile.public_weights == "none":
        return []
    free = profile.public_weights == "permissive"
    return [c for c in everything if card.id in c.modality and (c.permissive or not free)]


def _checkpoint(
    profile: Profile, card: ModalityCard, usable: Iterable[Checkpoint]
) -> tuple[Fact, str]:
    """The best licence among them."""
    if profile.public_weights == "none":
        return "none", "public weights are not allowed"
    if free := [c.name for c in usable if c.permissive]:
        return "permissive", "known: " + ", ".join(free)
    if names := [c.name for c in usable]:
        return "restricted", "known: " + ", ".join(names)
    some = " under a permissive licence" if profile.public_weights == "permissive" else ""
    return "none", f"no public weights{some} are known for {card.name}"


def _readable(usable: Iterable[Checkpoint]) -> tuple[Fact, str]:
    """Whether a script reads one of them, as far as their layout was seen."""
    layouts = {c.file_format for c in usable}
    if layouts == {"other"}:
        return False, "all known ones have a layout of their own"
    read = ", ".join(sorted(filter(None, layouts - {"other"})))
    return (
        (True, f"read as {read}") if read else (None, "none is known, or its layout was not seen")
    )


def _of_counts(profile: Profile) -> Iterable[Told]:
    labeled, unlabeled = profile.labeled, profile.unlabeled
    if unlabeled is None:
        yield "pool", None, "unlabeled is unknown"
    else:  # pre-training sees the labelled cases, too
        yield "pool", unlabeled + (labeled or 0), "unlabeled + labeled, as far as known"
    if labeled is None or unlabeled is None:
        missing = "labeled or unlabeled is unknown"
        yield from ((n, None, missing) for n in ("cases", "label_fraction", "pool_ratio"))
    else:
        cases = labeled + unlabeled
        yield "cases", cases, "labeled + unlabeled"
        yield "label_fraction", *_ratio(labeled, cases, "labeled / (labeled + unlabeled)")
        yield "pool_ratio", *_ratio(unlabeled, labeled, "unlabeled / labeled")
    if profile.gpus is None or profile.hours is None:
        yield "gpu_hours", None, "gpus or hours is unknown"
    else:
        yield "gpu_hours", profile.gpus * profile.hours, "gpus x hours"


def _ratio(part: int, whole: int, words: str) -> tuple[float | None, str]:
    return (part / whole, words) if whole else (None, f"{words} has no value with 0 below")
