"""A rule base small enough to be worked out by hand; tests change single files of it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

VIEW = "{value: 0.0, why: w, source: s}"


def method(
    id: str,
    paradigm: str,
    family: str,
    *,
    needs: str = "",
    script: str = "null",
    settings: str = "",
) -> str:
    return f"""\
id: {id}
name: {id.upper()}
title: A paper
paradigm: {paradigm}
family: {family}
source: {{arxiv: "2005.10240"}}
pretext: Something is learned.
needs: {{{needs or 'dimensionality: ["2d", "3d", video], backbone: [cnn, vit], because: All fit.'}}}
script: {script}
settings: {{{settings}}}
"""


def rule(id: str, body: str) -> str:
    """One advice item; reason, study and examples are filled in."""
    return (
        f"- id: {id}\n"
        + "".join(f"  {line}\n" for line in dedent(body).strip().splitlines())
        + f"  because: Reason of {id}.\n  studies: [roe-2020-one]\n  against: []\n"
        + "  examples:\n"
        + "    fires: [{modality: ct, task: segmentation}]\n"
        + "    not: [{modality: ct, task: classification}]\n"
    )


def weights(id: str, licence: str, permissive: bool, modality: str = "ct") -> str:
    """One item of `checkpoints.yaml`."""
    return f"""\
- id: {id}
  name: {id.title()}
  modality: [{modality}]
  covers: c
  architecture: null
  dimensionality: 3d
  file_format: monai
  file: null
  licence: {licence}
  permissive: {str(permissive).lower()}
  source: s
"""


FILES = {
    "VERSION": "1.0\n",
    "findings.yaml": "- {id: P1, statement: None is best., version: all, asks: Never say so.}\n",
    "facts.yaml": """\
- fact: label_regime
  from: labeled
  bands:
    - {name: none, below: 1}
    - {name: few-shot, below: 50}
    - {name: abundant}
  why: w
  source: s
- fact: compute
  from: gpu_hours
  bands: [{name: short, below: 12}, {name: ample}]
  why: w
  source: s
""",
    "scale.yaml": """\
strength: {strong: 2.0, conditional: 1.0}
certainty: {high: 1.0, moderate: 0.75, low: 0.5, very-low: 0.25}
why: w
source: s
""",
    "protocol.yaml": "crop_size: {value: 64, why: w, source: s}\n",
    "ranges.yaml": "- {settings: [epochs], least: 1}\n",
    "networks.yaml": "vit: {depth: {value: 12, why: w, source: s}}\n",
    "modalities/ct.yaml": f"""\
id: ct
name: CT
dimensionality: ["3d", "2d"]
channels: {{value: 1, why: one number a voxel, source: s}}
intensity: {{mode: window, low: -1000, high: 1000, why: w, source: s}}
spacing_mm: {{value: 1.5, why: w, source: s}}
views:
  rotate_degrees: {VIEW}
  flips: {{value: [left-right], why: w, source: s}}
  min_scale: {VIEW}
  gamma: {VIEW}
  noise: {VIEW}
  blur: {VIEW}
  color: {VIEW}
safe: []
unsafe: []
""",
    "checkpoints.yaml": weights("open", "MIT", True) + weights("closed", "CC-BY-NC-4.0", False),
    "methods/mae.yaml": method(
        "mae",
        "generative",
        "masked-modelling",
        needs='dimensionality: ["2d", "3d"], backbone: [vit], because: Tokens are needed.',
        script='{dimensionality: ["2d", "3d"], task: [segmentation], backbone: [vit]}',
        settings="mask_ratio: {value: 0.75, why: w, source: s}",
    ),
    "methods/spark.yaml": method("spark", "generative", "masked-modelling"),
    "methods/simclr.yaml": method("simclr", "contrastive", "instance-discrimination"),
    "methods/convirt.yaml": method("convirt", "contrastive", "image-text"),
    "methods/scratch.yaml": method("scratch", "none", "baseline"),
    "studies/roe-2020-one.yaml": """\
id: roe-2020-one
paper: {title: t, first_author: Roe, year: 2020, arxiv: "2001.00001"}
setting: {modality: [ct], task: [segmentation]}
dataset: d
metric: {name: Dice, higher_is_better: true}
results: [{method: mae, reported_as: MAE, paradigm: generative, score: 0.5}]
finding: One thing was seen.
source: {url: "https://example.org", kind: abstract}
trust: high
independence: independent
""",
    "advice/a.yaml": rule(
        "volumes",
        """
        finding: P1
        when: {task: segmentation}
        prefer: [{family: masked-modelling}]
        strength: strong
        certainty: moderate
        """,
    ),
}


def tiny(folder: Path, files: dict[str, str] | None = None) -> Path:
    """Write the rule base with some files replaced, and return its root.

    Args:
        folder: Where `rules/` is made.
        files: Contents by path under `rules/`; an empty text leaves the file out.
    """
    root = folder / "rules"
    for name, text in {**FILES, **(files or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text, encoding="utf-8")
    return root
