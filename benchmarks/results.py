"""Score the released weights and the baselines on every set of pairs, and print one table.

example:
  python benchmarks/results.py PAIRS        PAIRS holds folders with input/ and gt/ of equal names
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.pairs import sets_of
from utils.evaluation.baselines import BASELINES


def main() -> None:
    """Run evaluate.py on every set, and print PSNR / SSIM / CIEDE2000."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of sets")
    parser.add_argument("-w", "--weights", action="append", default=[], help="repeatable (default: msec and zero_dce)")
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("-o", "--output", type=Path, help="keep evaluate.py's files of every set here")
    arguments = parser.parse_args()
    weights = arguments.weights or ["msec", "zero_dce"]
    words = [word for name in weights for word in ("-w", name)] + [
        "--method",
        "all",
        "--longest",
        str(arguments.longest),
    ]
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    counts = {}
    with tempfile.TemporaryDirectory() as temporary:
        for folder in sets_of(arguments.root):
            output = (arguments.output or Path(temporary)) / folder.name
            command = [sys.executable, str(ROOT / "evaluate.py"), "folder", str(folder), "-o", str(output), *words]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
                raise SystemExit(1)
            for line in json.loads((output / "results.json").read_text(encoding="utf-8"))["means"]:
                row = table.setdefault(line["method"], {})
                row[folder.name] = (line["psnr"], line["ssim"], line["ciede2000"])
                counts[folder.name] = line["images"]
    names = list(counts)
    print("| method | " + " | ".join(f"{name} ({counts[name]})" for name in names) + " | mean over sets |")
    print("|---" * (len(names) + 2) + "|")
    for method in [*(name for name in table if name not in BASELINES), *BASELINES]:
        cells = [table[method][name] for name in names]
        mean = [statistics.fmean(values) for values in zip(*cells, strict=True)]
        shown = [f"{psnr:.2f} / {ssim:.3f} / {colour:.1f}" for psnr, ssim, colour in (*cells, tuple(mean))]
        print(f"| {method} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
