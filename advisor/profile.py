"""The user's problem: one field holds its name, type, unit, question, help and default.

The questionnaire, the command-line options and the JSON Schema are all derived from
`Profile.model_fields`; a field is never described a second time elsewhere. Which modalities exist
is not known here: they are the files of `rules/modalities`, and `Knowledge.check` compares.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .names import meant

Task = Literal[
    "classification", "segmentation", "detection", "regression", "retrieval", "registration"
]
Dimensionality = Literal["2d", "3d", "video"]
Backbone = Literal["cnn", "vit"]
Paradigm = Literal["contrastive", "predictive", "generative", "hybrid", "supervised", "none"]
Family = Literal[
    "instance-discrimination",
    "dense-contrast",
    "self-distillation",
    "redundancy-reduction",
    "latent-prediction",
    "spatial-prediction",
    "masked-modelling",
    "restoration",
    "combined",
    "image-text",
    "baseline",
]
Strength = Literal["strong", "conditional"]
Certainty = Literal["high", "moderate", "low", "very-low"]

TASKS: tuple[str, ...] = get_args(Task)
DIMENSIONALITIES: tuple[str, ...] = get_args(Dimensionality)
BACKBONES: tuple[str, ...] = get_args(Backbone)
PARADIGMS: tuple[str, ...] = get_args(Paradigm)
FAMILIES: tuple[str, ...] = get_args(Family)
STRENGTHS: tuple[str, ...] = get_args(Strength)
CERTAINTIES: tuple[str, ...] = get_args(Certainty)  # best first

UNKNOWN = "unknown"
REQUIRED = ("modality", "task")


class ProfileError(ValueError):
    """An answer is not allowed; the text is one line that names the field and the cure."""


def nearest(name: object, known: Iterable[object]) -> str:
    """The end of an error line: `; did you mean 'mae'?`, or nothing when no name comes close.

    Args:
        name: What was written.
        known: The names that would have been right.
    """
    names = {str(k).lower(): str(k) for k in known}
    near = meant(str(name), names)
    return f"; did you mean {names[near]!r}?" if near else ""


def _refuse_bool(value: object) -> object:
    """Python counts True as 1, but `labeled: true` is a slip, not one case."""
    if isinstance(value, bool):
        raise ValueError("yes or no is not a number")
    return value


_Count = Annotated[int, BeforeValidator(_refuse_bool)]
_Amount = Annotated[float, BeforeValidator(_refuse_bool)]
_MOST = 1_000_000_000  # beyond any archive; keeps every derived ratio and product finite


def ask(question: str, help: str, unit: str = "", default: Any = None, **limits: Any) -> Any:
    """A profile field: what the user is asked, why it matters, and what is allowed.

    Args:
        question: One question, as put to the user.
        help: What the answer changes.
        unit: Unit of a number, in words.
        default: `None` is unknown; `...` makes the field required.
        **limits: `ge`, `gt`, `le` of pydantic's `Field`.
    """
    extra: dict[str, Any] = {"question": question, "help": help, "unit": unit}
    return Field(default=default, description=question, json_schema_extra=extra, **limits)


class Profile(BaseModel):
    """What is known of the problem; `None` is unknown, everywhere but in modality and task."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    modality: str = ask(
        "What kind of images do you have?",
        "Decides intensity handling, which augmentations are safe and which public weights exist.",
        default=...,
        min_length=1,
    )
    task: Task = ask(
        "What should the model do in the end?",
        "Dense tasks need local structure, image-level tasks need global features.",
        default=...,
    )
    dimensionality: Dimensionality | None = ask(
        "Are the images flat, volumes or films?", "Unknown means the usual one of the modality."
    )
    labeled: _Count | None = ask(
        "How many cases are labelled for the task?",
        "The gain from pre-training is largest with few labels.",
        unit="cases (patients or studies)",
        ge=0,
        le=_MOST,
    )
    unlabeled: _Count | None = ask(
        "How many further cases have no label?",
        "They are what pre-training learns from.",
        unit="cases (patients or studies)",
        ge=0,
        le=_MOST,
    )
    classes: _Count | None = ask(
        "How many classes are there?",
        "Counted with the background in segmentation.",
        unit="classes",
        ge=2,
        le=_MOST,
    )
    multilabel: bool | None = ask(
        "Can one case carry several labels at once?", "Changes the loss and the metrics."
    )
    target_scale: Literal["global", "regional", "focal"] | None = ask(
        "How large is what the label speaks of: the whole image, a region, or a small focus?",
        "Objectives that compare whole images may miss small foci.",
    )
    multi_view: bool | None = ask(
        "Are there several images of the same patient or lesion?",
        "Some methods learn from such pairs, and some exist only with them.",
    )
    backbone: Literal["cnn", "vit", "any"] | None = ask(
        "Must the network be a CNN or a vision transformer?",
        "Some objectives are defined for one of them only; 'any' leaves the choice open.",
    )
    adaptation: Literal["finetune", "frozen"] | None = ask(
        "Will the network be fine-tuned, or its features used frozen?",
        "Published orderings of methods differ between the two.",
    )
    batch_size: _Count | None = ask(
        "How many images fit into one step, over all GPUs together?",
        "Some objectives fail at small batches.",
        unit="images a step",
        ge=1,
        le=_MOST,
    )
    image_size: _Count | None = ask(
        "How large is an image along its shorter side?",
        "Bounds the crop that the network sees.",
        unit="pixels (voxels) a side",
        ge=8,
        le=_MOST,
    )
    gpus: _Count | None = ask(
        "How many GPUs can you use at once?", "0 is a CPU only.", unit="GPUs", ge=0, le=_MOST
    )
    gpu_memory_gb: _Amount | None = ask(
        "How much memory has one GPU?", "Bounds batch and crop.", unit="GB", gt=0, le=_MOST
    )
    hours: _Amount | None = ask(
        "For how many hours can they compute?",
        "The budget of the whole run: pre-training, fine-tuning and the comparison.",
        unit="hours",
        gt=0,
        le=_MOST,
    )
    public_weights: Literal["any", "permissive", "none"] | None = ask(
        "Which public weights may you use?",
        "'permissive' excludes research-only licences; 'none' allows no public weights.",
    )
    domain_shift: bool | None = ask(
        "Will the model meet other scanners or hospitals than those of the labelled data?",
        "Asks for evidence on transfer, and for a test on outside data.",
    )

    @model_validator(mode="before")
    @classmethod
    def _unknown_is_none(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {k: None if v == UNKNOWN and k not in REQUIRED else v for k, v in data.items()}

    @classmethod
    def parse(cls, answers: Mapping[str, Any]) -> "Profile":
        """Check answers, from JSON or a form, and freeze them.

        Args:
            answers: Field names to values; `"unknown"` and `None` mean unknown.

        Raises:
            ProfileError: For the first answer that is not allowed, in one line.
        """
        if not isinstance(answers, Mapping):
            raise ProfileError(f"a profile is a set of named answers, not {answers!r}")
        try:
            return cls.model_validate({str(k): v for k, v in answers.items()})
        except ValidationError as error:
            raise ProfileError(_sentence(error.errors()[0])) from None

    def changed(self, **answers: Any) -> "Profile":
        """The same problem with some answers replaced, checked like the first.

        Args:
            **answers: Field names to new values.

        Raises:
            ProfileError: If a new answer is not allowed.
        """
        return Profile.parse({**self.model_dump(), **answers})


class Question(NamedTuple):
    """One field as a form needs it, derived from `Profile.model_fields`."""

    name: str
    kind: Literal["text", "choice", "yes-no", "whole", "number"]
    question: str
    help: str
    unit: str
    choices: tuple[str, ...]  # of a "choice"; () otherwise
    required: bool
    allowed: str  # in words: "a whole number, 0 or more"


def question(name: str) -> Question:
    """The question behind one field.

    Args:
        name: A field of `Profile`.
    """
    field = Profile.model_fields[name]
    parts = [p for p in (get_args(field.annotation) or (field.annotation,)) if p is not type(None)]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind, choices = _kind(parts)
    return Question(
        name,
        kind,
        str(extra["question"]),
        str(extra["help"]),
        str(extra["unit"]),
        choices,
        field.is_required(),
        _allowed(kind, choices, field.metadata),
    )


def questions() -> tuple[Question, ...]:
    """Every question, in the order of the profile's fields."""
    return tuple(question(name) for name in Profile.model_fields)


def _kind(parts: list[Any]) -> tuple[Any, tuple[str, ...]]:
    """What sort of answer an annotation without its None asks for, and its choices."""
    if isinstance(parts[0], str):  # a bare Literal: its arguments are the choices
        return "choice", tuple(parts)
    inner = get_args(parts[0])
    if inner and isinstance(inner[0], str):
        return "choice", tuple(inner)
    base = inner[0] if inner else parts[0]
    return {bool: "yes-no", int: "whole", float: "number"}.get(base, "text"), ()


def _allowed(kind: str, choices: tuple[str, ...], limits: list[Any]) -> str:
    if kind == "choice":
        return "one of " + ", ".join(choices)
    if kind in ("yes-no", "text"):
        return {"yes-no": "yes or no", "text": "an id, as in rules/modalities"}[kind]
    least = next((f", {m.ge} or more" for m in limits if hasattr(m, "ge")), "")
    above = next((f" above {m.gt}" for m in limits if hasattr(m, "gt")), "")
    return f"a {'whole ' if kind == 'whole' else ''}number{above}{least}"


def _sentence(error: Any) -> str:
    """One pydantic error as one line: field, what is wrong, what is allowed."""
    name = str(error["loc"][0]) if error["loc"] else "profile"
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such field{nearest(name, Profile.model_fields)}"
    asked = question(name)
    if error["type"] == "missing" or (error["input"] is None and asked.required):
        return f"{name}: missing; it cannot be unknown: {asked.question} ({asked.allowed})"
    given = error["input"]
    if asked.kind == "choice":
        return f"{name}: {given!r} is not {asked.allowed}{nearest(given, asked.choices)}"
    too_many = f", at most {_MOST}" if error["type"] == "less_than_equal" else ""
    return f"{name}: {given!r} is not allowed: {asked.allowed}{too_many}"
