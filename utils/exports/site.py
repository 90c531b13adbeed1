"""The web page: a folder of static files that any web server can serve."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from models import Corrector

from ..files import atomic_path, write_text
from .onnx_file import CurvesOfColours, ExportError, write_onnx

SOURCES = (".html", ".css", ".js", ".svg", ".webmanifest")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Files of onnxruntime-web: its interface, and WebAssembly with SIMD, for one thread or several."""
GRAPHICS = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""The same for WebGPU: fetched by browsers that have it, and kept from then on."""


def find_runtime(source: Path) -> Path:
    """Return the folder of onnxruntime-web's files, beside the page's sources.

    Raises:
        ExportError: it is not installed, or another version that lacks a file.
    """
    folder = source / "node_modules" / "onnxruntime-web" / "dist"
    if missing := [name for name in (*RUNTIME, *GRAPHICS) if not (folder / name).is_file()]:
        raise ExportError(f"{folder / missing[0]}: not there: npm ci --prefix {source.name}")
    return folder


def write_site(folder: Path, source: Path, corrector: Corrector, facts: dict[str, Any]) -> int:
    """Write the page's files, its runtime and its network into a folder; return their size in bytes.

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
    write_onnx(folder / "model.onnx", CurvesOfColours(corrector), facts, half=True)
    write_text(folder / "model.json", json.dumps(facts, indent=1) + "\n")
    copied = [path for path in sorted(source.iterdir()) if path.suffix in SOURCES]
    for path in [*copied, *(runtime / name for name in (*RUNTIME, *GRAPHICS))]:
        with atomic_path(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    names = sorted(["model.onnx", "model.json", *(path.name for path in copied), *RUNTIME, *GRAPHICS])
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()
    kept = ["./", *(name for name in names if name not in ("index.html", "service-worker.js", *GRAPHICS))]
    lists = f"self.FILES = {json.dumps(kept)};\nself.FILES_ONCE_USED = {json.dumps(GRAPHICS)};\n"
    write_text(folder / "files.js", f"self.VERSION = {digest[:16]!r};\n{lists}")
    return sum((folder / name).stat().st_size for name in [*names, "files.js"])
