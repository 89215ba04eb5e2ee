"""The answer as data: frozen, printable, and the same again after a trip through JSON."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from .base import Value
from .facts import Facts
from .profile import Certainty, Family, Paradigm, Profile, Strength
from .whatif import WhatIf

_FEW = 5  # strategies that a printed answer shows


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Reason(_Part):
    """One fired rule that speaks for a strategy or against it; `weight` carries the sign."""

    rule: str
    verb: Literal["prefer", "avoid"]
    strength: Strength
    certainty: Certainty
    weight: float
    because: str
    finding: str | None
    studies: tuple[str, ...]
    against: tuple[str, ...]
    source: tuple[str, ...]


class Chosen(_Part):
    """A number of the run; `rule` is the one that set it, None where it is the card's own."""

    value: Value
    why: str
    source: str
    rule: str | None


class Strategy(_Part):
    """One method that is not ruled out; `emits` tells whether there is a script for it here."""

    rank: int
    method: str
    name: str
    paradigm: Paradigm
    family: Family
    score: float
    certainty: Certainty
    tied_with: tuple[str, ...]
    emits: bool
    reasons: tuple[Reason, ...]
    settings: dict[str, Chosen]


class RuledOut(_Part):
    """One reason for which a method may not compete; a method may have several."""

    method: str
    rule: str
    because: str


class Caution(_Part):
    """A warning on the answer."""

    rule: str
    text: str
    studies: tuple[str, ...]


class AlsoConsider(_Part):
    """A method that is not ranked, since it needs reports beside the images."""

    method: str
    because: str


class PackUsed(_Part):
    """A rule pack; `overrides` names what it replaced, as `rule few-labels` or `method mae`."""

    name: str
    version: str
    sha256: str
    overrides: tuple[str, ...]


class Provenance(_Part):
    """Which knowledge gave the answer."""

    version: str
    sha256: str
    packs: tuple[PackUsed, ...] = ()


class Recommendation(_Part):
    """The whole answer; its JSON is stable within one `schema_version`."""

    schema_version: Literal[1] = 1
    profile: Profile
    facts: Facts
    knowledge: Provenance
    engine: str
    verdict: str
    strategies: tuple[Strategy, ...]
    ruled_out: tuple[RuledOut, ...]
    cautions: tuple[Caution, ...]
    common: dict[str, Chosen]
    also_consider: tuple[AlsoConsider, ...]
    what_if: tuple[WhatIf, ...]

    def place(self, strategy: Strategy) -> str:
        """The rank as it is shown: of tied strategies that of the first of them, as `3=`.

        Args:
            strategy: One of the answer.
        """
        if not strategy.tied_with:
            return str(strategy.rank)
        tied = (strategy.method, *strategy.tied_with)
        return f"{min(s.rank for s in self.strategies if s.method in tied)}="

    def __str__(self) -> str:
        """The verdict and the best strategies; `advisor.as_text` gives the whole page."""
        shown = self.strategies[:_FEW]
        wide = max((len(s.method) for s in shown), default=0)
        lines = [
            f"  {self.place(s):>3}  {s.method:{wide}}  {s.score:5.2f}  {s.certainty}" for s in shown
        ]
        more = len(self.strategies) - len(shown)
        return "\n".join([self.verdict, *lines, *[f"  ... and {more} more"] * bool(more)])
