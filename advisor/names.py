"""What people call things: the nearest right name for a wrong one, for the end of an error line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Words for images and tasks that are spelt too differently to be found by their letters.
SYNONYMS = {
    "dsa": "angiography",
    "cta": "ct",
    "cbct": "ct",
    "skin": "dermoscopy",
    "dermatoscopy": "dermoscopy",
    "colonoscopy": "endoscopy",
    "retina": "fundus",
    "retinal": "fundus",
    "fundoscopy": "fundus",
    "wsi": "histopathology",
    "slide": "histopathology",
    "slides": "histopathology",
    "pathology": "histopathology",
    "mr": "mri",
    "us": "ultrasound",
    "echo": "ultrasound",
    "sonography": "ultrasound",
    "cxr": "xray",
    "x-ray": "xray",
    "radiograph": "xray",
    "radiography": "xray",
    "diagnosis": "classification",
    "cls": "classification",
    "localization": "detection",
    "localisation": "detection",
    "cbir": "retrieval",
    "alignment": "registration",
}


def meant(name: str, known: Iterable[str]) -> str | None:
    """The one of these names that was meant, or None where it is not plain.

    By a word for it, then by its letters, by a word in it ("brain mri"), and by its beginning.

    Args:
        name: What was written.
        known: The names that would have been right, in lower case.
    """
    known, wanted = list(known), name.lower()
    if (said := SYNONYMS.get(wanted)) in known:
        return said
    if near := get_close_matches(wanted, known, 1):
        return near[0]
    words = re.split(r"[\s_-]+", wanted)
    called = dict.fromkeys(SYNONYMS.get(word, word) for word in words if word)
    inside = [word for word in called if word in known]
    begun = [each for each in known if each.startswith(wanted)] if len(wanted) > 1 else []
    return next((found[0] for found in (inside, begun) if len(found) == 1), None)
