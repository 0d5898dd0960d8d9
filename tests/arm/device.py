"""What runs on a board: `python device.py JOBS OUT`. JOBS is JSON, a list of {"bundle", "runtime", "prompt", "steps", "ids"}.

OUT gets the logits of each job, after every one of `ids` in an empty session, as OUT/NUMBER.npy, and OUT/said.json: what was
generated after the prompt, what was imported, and where libraries lie in memory.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

import edgellm


def main(jobs: Path, out: Path) -> None:
    """Each job in turn, on one thread: an emulator is no place to look for races."""
    said: dict[str, Any] = {"machine": platform.machine(), "tokens": []}
    for number, job in enumerate(json.loads(jobs.read_text(encoding="utf-8"))):
        with edgellm.load(job["bundle"], runtime=job["runtime"], threads=1) as llm:
            output = llm.generate(job["prompt"], max_tokens=job["steps"], temperature=0)
            said["tokens"].append(list(output.ids))
            session = llm.session()
            np.save(out / f"{number}.npy", session.logits(job["ids"]))
            session.close()
    said["modules"] = sorted({name.split(".")[0] for name in sys.modules})
    said["maps"] = Path("/proc/self/maps").read_text(encoding="utf-8")
    (out / "said.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
