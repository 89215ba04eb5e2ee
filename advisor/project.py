"""A folder to start from: script, manifest, requirements, batch file, and why it is so."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from .explain import answer
from .page import markdown
from .parts import part
from .render import render

if TYPE_CHECKING:
    from .answer import Recommendation
    from .plan import Plan

# What scripts may import, by module, as pip names it; the upper bounds are the next major version
# after the one that the tests run with.
RANGES = {
    "av": "av>=14,<20",
    "matplotlib": "matplotlib>=3.8,<4",
    "monai": "monai>=1.4,<2",
    "nibabel": "nibabel>=5.2,<6",
    "numpy": "numpy>=1.26,<3",
    "openslide": "openslide-python>=1.4,<2",
    "PIL": "pillow>=10.1,<14",
    "pydicom": "pydicom>=3.0,<4",
    "safetensors": "safetensors>=0.4,<1",
    "torch": "torch>=2.4,<3",
    "tqdm": "tqdm>=4.66,<5",
}
WEIGHTS = " --weights FILE"  # what follows each command of a script that asks for a checkpoint
COMPANIONS = {
    "monai": "einops>=0.7,<1",  # its transformers import it when they are built
    "openslide": "openslide-bin>=4.0,<5",  # the library itself
}


def files(found: Recommendation, plan: Plan) -> dict[str, str]:
    """The texts of a project by file name; a job is as long as the hours of the answer.

    Args:
        found: The answer that the plan is for.
        plan: What the script does.
    """
    return {
        "train.py": render(plan),
        "manifest.csv": f"path,{plan.target},patient,split\n",
        "requirements.txt": requirements(plan),
        "train.sbatch": batch_file(plan, hours=found.profile.hours or 24.0),
        "recommendation.json": found.model_dump_json(indent=2) + "\n",
        "explanation.md": markdown(answer(found, everything=True)) + "\n",
        "README.md": _readme(found, plan),
    }


def requirements(plan: Plan) -> str:
    """The packages that the script imports, each with the range that it is known to run with.

    Args:
        plan: What the script does.
    """
    modules = {module for name in plan.parts for module in part(name).modules}
    known = [*RANGES.items(), *COMPANIONS.items()]
    return "\n".join(sorted(line for module, line in known if module in modules)) + "\n"


def batch_file(plan: Plan, script: str = "train.py", hours: float = 24.0) -> str:
    """A Slurm batch file that trains on one GPU a task and goes on where it was stopped.

    Args:
        plan: What the script does.
        script: Its path.
        hours: Time limit of a job; what is not done then is continued by the next.
    """
    minutes = max(10, round(hours * 60))
    limit = f"{minutes // 60:02d}:{minutes % 60:02d}:00"
    workers = next(s.value for s in plan.settings if s.name == "workers")
    gpus = max(1, int(plan.origin.profile.get("gpus", 1)))
    name = re.sub(r"\W+", "-", plan.method)
    batch = str(PurePath(script).with_suffix(".sbatch"))
    start, asked, more = f"sbatch {batch}", "", ""
    if needs_weights(plan):
        start = f"WEIGHTS=FILE {start}"
        asked = f"weights=${{WEIGHTS:?name the downloaded checkpoint, {start}}}\n"
        more = ' --weights "$weights"'
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes=1                # more nodes need no other change
#SBATCH --ntasks-per-node={gpus}      # one task a GPU
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task={int(str(workers)) + 1}
#SBATCH --mem-per-cpu=8G
#SBATCH --time={limit}
#SBATCH --signal=TERM@180        # three minutes before the end: save, and stop
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# {start}; the data and the folder of the run must be on a disk that all nodes share.

data=${{DATA:-manifest.csv}}
out=${{OUT:-runs/a}}
{asked}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=1

srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=0
    exec python "$@"' train {script} all --data "$data" --out "$out"{more}
code=$?

# 143: it was told to stop and has saved its state; the same command continues there
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _readme(found: Recommendation, plan: Plan) -> str:
    shared = "--data manifest.csv --out runs/a"
    batch, weights, further = "sbatch train.sbatch", "", ""
    if needs_weights(plan):
        batch, weights = f"WEIGHTS=FILE {batch}", WEIGHTS
        known = f"medssl explain {found.profile.modality}"
        further = f" `FILE` is the checkpoint that you downloaded; `{known}` names known ones."
    commands = "\n".join(f"python train.py {each} {shared}{weights}" for each in stages(plan))
    return f"""# {plan.title.rstrip(".")}

{found.verdict}

1. Fill `manifest.csv`: a row an image or volume. `path` is relative to the manifest;
   `{plan.target}` is empty for images without a label; rows of one patient share `patient`; `split`
   may be empty.
2. Install: `pip install -r requirements.txt`
3. Look at what the network will see and what the run will take, then train:

```
medssl preview train.py {shared}
medssl dry-run train.py {shared}
{commands}
medssl report train.py {shared}
```

`evaluate` says in a sentence whether pre-training helped; the report shows it in curves and
examples. Any command may be stopped and given again. On a Slurm cluster: `{batch}`.{further}
`train.py` needs nothing of `medssl`, which only looks at it.

| file | holds |
|---|---|
| `train.py` | everything that is run, to be read and changed |
| `explanation.md` | why this strategy, what speaks against it, what would change the choice |
| `recommendation.json` | the same for programs; `medssl diff recommendation.json` asks again |
| `requirements.txt`, `train.sbatch` | packages, and a batch file |

`medssl regenerate train.py --check` says which parts of the script still are as they were emitted,
and what a newer version would write.
"""


def needs_weights(plan: Plan) -> bool:
    """Whether the script asks for a checkpoint that its user has to name.

    Args:
        plan: What the script does.
    """
    given = any(s.name == "weights" and s.value for s in plan.settings)
    asks = r"if not settings\.weights:\s+fail\("
    return not given and any(re.search(asks, part(name).body) for name in plan.parts)


def stages(plan: Plan) -> tuple[str, ...]:
    """The stages of the script in their order; some starts need no training of their own.

    Args:
        plan: What the script does.
    """
    written = (re.search(r"^FIRST = {(.*?)}", part(n).body, re.M | re.S) for n in plan.parts)
    first = next((re.findall(r'"(\w+)":', found[1]) for found in written if found), [])
    return (*first, "finetune", "evaluate")
