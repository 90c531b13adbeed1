"""The web page: a folder of static files that any web server can serve."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from models import Corrector

from ..files import atomic_path, write_text
from .onnx_file import CurvesOfColours, ExportError, write_onnx

SOURCES = (".html", ".css", ".js", ".svg", ".webmanifest")
RUNTIMES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "jspi": ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
}
"""Files of onnxruntime-web's builds: WebAssembly with SIMD, for one thread or several; and WebGPU, for which JavaScript
Promise Integration waits (the build without it is 10 MB larger). Each browser fetches one of them."""
TRIAL = (16, 16)
"""Size of what the page's network is tried on before it is used."""


def find_runtime(source: Path) -> Path:
    """Return the folder of onnxruntime-web's files, beside the page's sources.

    Raises:
        ExportError: it is not installed, or another version that lacks a file.
    """
    folder = source / "node_modules" / "onnxruntime-web" / "dist"
    if missing := [name for names in RUNTIMES.values() for name in names if not (folder / name).is_file()]:
        raise ExportError(f"{folder / missing[0]}: not there: npm ci --prefix {source.name}")
    return folder


def trial(module: CurvesOfColours) -> dict[str, Any]:
    """Return the size of a small copy, whose values in [0, 1] the page makes, and the means of its nine maps."""
    height, width = TRIAL
    small = (torch.arange(3 * height * width) * 37 % 256 / 255).view(1, 3, height, width)
    with torch.inference_mode():
        means = module.eval()(small, torch.eye(3)).mean((-2, -1)).flatten().tolist()
    return {"height": height, "width": width, "means": means}


def write_site(folder: Path, source: Path, corrector: Corrector, facts: dict[str, Any]) -> int:
    """Write the page's files, its runtimes and its network into a folder; return their size in bytes.

    The list of files for the service worker comes last: with another version in it, browsers fetch the page anew.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        source: the page's sources, with node_modules inside.
        corrector: what the page runs, on the CPU.
        facts: what it is to tell of its weights.

    Raises:
        ExportError: the runtime is not installed, or as `write_onnx`.
        OSError: the folder is read-only or full.
    """
    runtime = find_runtime(source)
    folder.mkdir(parents=True, exist_ok=True)
    module = CurvesOfColours(corrector)
    write_onnx(folder / "model.onnx", module, facts, half=True)
    write_text(folder / "model.json", json.dumps({**facts, "trial": trial(module)}, indent=1) + "\n")
    copied = [path for path in sorted(source.iterdir()) if path.suffix in SOURCES]
    of_runtimes = [name for names in RUNTIMES.values() for name in names]
    for path in [*copied, *(runtime / name for name in of_runtimes)]:
        with atomic_path(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    own = sorted(["model.onnx", "model.json", *(path.name for path in copied)])
    names = [*own, *of_runtimes]
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()
    kept = ["./", *(name for name in own if name not in ("index.html", "service-worker.js"))]
    values = {"VERSION": digest[:16], "FILES": kept, "RUNTIMES": RUNTIMES}
    write_text(folder / "files.js", "".join(f"self.{name} = {json.dumps(value)};\n" for name, value in values.items()))
    return sum((folder / name).stat().st_size for name in [*names, "files.js"])
