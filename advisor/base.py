"""What all files of `rules/` have in common: kinds of text and values, frozen items."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints


def _plain(value: Any) -> Any:
    """A setting is a scalar or a list of scalars; lists are frozen to tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, bool | int | str) or (isinstance(value, float) and abs(value) < 1e300):
        return value
    raise ValueError("a finite number, a text, true, false or a list of these is expected")


Scalar = bool | int | float | str
if TYPE_CHECKING:
    Value = Scalar | tuple[Scalar, ...]
else:  # one function instead of a union, whose branches would each complain about a wrong value
    Value = Annotated[Any, BeforeValidator(_plain)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]

Arxiv = Annotated[str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+/\d{7})$")]
Doi = Annotated[str, StringConstraints(pattern=r"^10\.\d{4,9}/\S+$")]
_REPOSITORY = "official_repo_(figure|readme|paper_pdf|csv|supplement)"
_SEEN_IN = rf"^(abstract|{_REPOSITORY}|third_party_note|blog|journal_table)$"
SeenIn = Annotated[str, StringConstraints(pattern=_SEEN_IN)]


class Card(BaseModel):
    """Base of every item; its validator is built when the first file of its kind is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Disagreement(Card):
    """Why the ranking differs from a study: noise, a special setting, or an error of ours."""

    kind: Literal["noise", "special-setting", "our-error"]
    because: Text

    def __str__(self) -> str:
        return f"{self.kind}: {self.because}"
