"""The shape of every file in `rules/`: what each must say, and nothing more."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from .base import Arxiv, Card, Disagreement, Doi, Id, SeenIn, Text, Value
from .profile import Backbone, Certainty, Dimensionality, Family, Paradigm, Strength, Task


class Setting(Card):
    """One number of a run, with the reason for it."""

    value: Value
    why: Text
    source: Text


class Reference(Card):
    """A publication, by arXiv id or DOI; quoted, since `2005.10240` unquoted loses its zero."""

    arxiv: Arxiv | None = None
    doi: Doi | None = None


class Needs(Card):
    """What a method is defined for; outside of it the method is ruled out."""

    dimensionality: tuple[Dimensionality, ...]
    backbone: tuple[Backbone, ...]
    because: Text
    multi_view: bool = False
    tasks: tuple[Task, ...] | None = None


class Coverage(Card):
    """For what there is a script template."""

    dimensionality: tuple[Dimensionality, ...]
    task: tuple[Task, ...]
    backbone: tuple[Backbone, ...]


class Sensitivity(Card):
    """How much a method suffers from small batches."""

    level: Literal["high", "medium", "low"]
    because: Text


class Sourced(Card):
    """A sentence and where it is from."""

    text: Text
    source: Text


class Cost(Card):
    """What a method costs, relative to supervised training."""

    relative: Text
    source: Text


class Licence(Card):
    """Licence of the authors' code, as seen."""

    code: Text
    repository: str | None = None


class Published(Card):
    """Settings seen in a source, in its own words."""

    domain: Text
    values: dict[str, Any]
    source: Text


class MethodCard(Card):
    """`rules/methods/<id>.yaml`: a strategy, or a baseline."""

    id: Id
    name: Text
    title: Text
    paradigm: Paradigm
    family: Family
    source: Reference
    more: tuple[Reference, ...] = ()
    pretext: Text
    needs: Needs
    script: Coverage | None = None
    settings: dict[str, Setting] = Field(default={})
    published: tuple[Published, ...] = ()
    batch_sensitivity: Sensitivity | None = None
    failure_modes: tuple[Sourced, ...] = ()
    cost: Cost | None = None
    licence: Licence | None = None


class Channels(Setting):
    """How many input channels."""

    value: Literal[1, 3]


class Intensity(Card):
    """How stored values become 0..1; low and high are stored units or percentiles."""

    mode: Id  # names templates/data/<mode>.py.j2
    low: float | None = None
    high: float | None = None
    why: Text
    source: Text


class Views(Card):
    """Random views that keep the meaning of an image of this modality."""

    rotate_degrees: Setting
    flips: Setting
    min_scale: Setting
    gamma: Setting
    noise: Setting
    blur: Setting
    color: Setting


class Part(Setting):
    """Which template does a step for this modality, and why."""

    value: Id


class Augmentation(Card):
    """An augmentation in words, safe or unsafe."""

    what: Text
    why: Text
    source: Text


class ModalityCard(Card):
    """`rules/modalities/<id>.yaml`: a kind of image."""

    id: Id
    name: Text
    dimensionality: Annotated[tuple[Dimensionality, ...], Field(min_length=1)]  # usual one first
    channels: Channels
    intensity: Intensity
    spacing_mm: Setting
    views: Views
    distort: Part | None = None  # templates/views/<value>.py.j2; else grey or colour
    frame: Part | None = None  # templates/data/frame_<value>.py.j2; else the whole image
    pictures: Part | None = None  # templates/data/<value>.py.j2, what a row of 2D holds
    physics: dict[str, Setting] = Field(default={})  # what these templates ask for
    safe: tuple[Augmentation, ...]
    unsafe: tuple[Augmentation, ...]
    notes: tuple[Sourced, ...] = ()


class Finding(Card):
    """One statement of the review, in our words."""

    id: Annotated[str, StringConstraints(pattern=r"^P\d+$")]
    statement: Text
    version: Text
    asks: Text


class Band(Card):
    """One named range; the last band of a list has no upper end."""

    name: Id
    below: float | None = None


class Bands(Card):
    """`rules/facts.yaml`: a number cut into named ranges, upper ends excluded."""

    fact: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
    source_fact: Annotated[str, Field(alias="from")]
    bands: Annotated[tuple[Band, ...], Field(min_length=2)]
    why: Text
    source: Text


class Scale(Card):
    """`rules/scale.yaml`: a reason weighs strength times certainty."""

    strength: dict[Strength, float]
    certainty: dict[Certainty, float]
    why: Text
    source: Text


class Selector(Card):
    """All methods of a paradigm, a family, or both."""

    paradigm: Paradigm | None = None
    family: Family | None = None


Target = str | Selector


class Examples(Card):
    """Profiles on which a rule must fire, and near misses on which it must not."""

    fires: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    misses: Annotated[tuple[dict[str, Any], ...], Field(alias="not", min_length=1)]


class Rule(Card):
    """One item of `rules/advice/<topic>.yaml`."""

    id: Id
    finding: str | None = None
    when: dict[str, Any]
    prefer: tuple[Target, ...] = ()
    avoid: tuple[Target, ...] = ()
    exclude: tuple[Target, ...] = ()
    sets: Annotated[dict[str, Value], Field(alias="set", default={})]
    only_for: Annotated[tuple[Target, ...], Field(alias="for")] = ()
    caution: Text | Literal[True] | None = None
    strength: Strength | None = None
    certainty: Certainty | None = None
    because: Text
    studies: tuple[str, ...]
    source: tuple[Text, ...] = ()
    against: tuple[str, ...]
    examples: Examples


class Paper(Reference):
    """The publication behind a study."""

    title: Text
    first_author: Text
    year: Annotated[int, Field(ge=1990, le=2100)]
    venue: str | None = None
    url: str | None = None  # where there is neither arXiv id nor DOI


class StudySetting(Card):
    """In what situation a study compared."""

    modality: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    dimensionality: Dimensionality | None = None
    backbone: Backbone | None = None
    adaptation: Literal["finetune", "frozen"] | None = None
    label_regime: str | None = None
    labels: str | None = None
    target_scale: Literal["global", "regional", "focal"] | None = None


class Metric(Card):
    """What was measured."""

    name: Text
    higher_is_better: bool


class Result(Card):
    """One compared setting; `method` is null where it is none of our ids."""

    method: str | None = None
    reported_as: Text
    paradigm: Paradigm | None = None
    score: float | Text  # text where only an order was published: "best group"


class StudySource(Card):
    """Where the numbers were seen."""

    url: Text
    kind: SeenIn


class Study(Card):
    """`rules/studies/<id>.yaml`: one published comparison."""

    id: Id
    paper: Paper
    setting: StudySetting
    dataset: Text
    metric: Metric
    pretrain_data: str | None = None
    results: tuple[Result, ...]
    finding: Text
    caveat: str | None = None
    source: StudySource
    trust: Literal["high", "moderate", "low"]
    independence: Literal["independent", "method-paper"]
    disagreement: Disagreement | None = None
