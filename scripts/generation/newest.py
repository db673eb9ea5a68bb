"""The places outside the package that name the newest release of vLLM, or every release that has a table."""

import re
from pathlib import Path

from vllmjobs.vllm.releases import NEWEST, VERSIONS

RELEASE = r"\d+\.\d+\.\d+"
OFFICIAL = rf"(?<=vllm/vllm-openai:v){RELEASE}"
OURS = rf"(?<=vllmjobs-vllm:v){RELEASE}"
# Each place by what stands before it. What names a release for another reason is left alone.
PLACES = {
    "images/vllm/Dockerfile": [rf"(?<=^ARG TAG=v){RELEASE}$"],
    "envs/base.yaml": [OFFICIAL],
    "README.md": [rf"(?<=is no option of vLLM ){RELEASE}"],
    "docs/check.md": [rf"(?<=CompilationConfig in vLLM ){RELEASE}", OFFICIAL, rf'(?<=`vllm: "){RELEASE}'],
    "docs/image.md": [OURS, rf"(?<=`vllm/vllm-openai`, `v){RELEASE}"],
}
CASES = {
    "tests/cases/render/*.txt": OFFICIAL,  # the image of an environment that names none
    "tests/cases/check/*.txt": rf"(?<=name a version, such as :v){RELEASE}",
}
TABLES = re.compile(rf"(?<=tables of vLLM ){RELEASE}(?:, {RELEASE})* and {RELEASE}")


def files(root: Path) -> dict[str, str]:
    """Return each file that names the newest release, with the one that is the newest now."""
    made = {}
    for name, patterns in PLACES.items():
        text = (root / name).read_text()
        for pattern in patterns:
            text, count = re.subn(pattern, NEWEST, text, flags=re.MULTILINE)
            if not count:
                raise SystemExit(f"scripts/generate: {name} has no {pattern}: mend PLACES in newest.py")
        made[name] = TABLES.sub(f"{', '.join(VERSIONS[:-1])} and {NEWEST}", text)
    for cases, pattern in CASES.items():
        for path in sorted(root.glob(cases)):
            made[str(path.relative_to(root))] = re.sub(pattern, NEWEST, path.read_text())
    return made
