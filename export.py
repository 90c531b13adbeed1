"""Give a trained network in another form. What form it is, the ending of the file to write says.

  .safetensors    weights for predict.py, in full precision; DAConv layers merged into plain convolutions, checked
  .onnx           the whole correction for other programs: a photo in, the photo out (docs/export.md)
  --page FOLDER   a web page that corrects photos in the browser (docs/page.md)

examples:
  python export.py runs/msec/last.pt -o plain.safetensors
  python predict.py FOLDER -o corrected -w plain.safetensors
  python export.py weights/msec.safetensors -o msec.onnx
  python export.py weights/msec.safetensors -o curves.onnx --curves --half
  python export.py --page site
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: only once the arguments are known to be good
    from models import Corrector

REPOSITORY = Path(__file__).resolve().parent
WEIGHTS = REPOSITORY / "weights" / "msec.safetensors"


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 written, 1 the weights cannot be used, 2 usage."""
    arguments = parse_arguments(argv)

    from utils.config import ConfigError
    from utils.exports.onnx_file import ExportError
    from utils.training.checkpoint import CheckpointError
    from utils.weights import WeightsError

    form = write_page if arguments.page else FORMS[arguments.output.suffix]
    try:
        print(form(arguments))
        return 0
    except (CheckpointError, ConfigError, ExportError, WeightsError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
    except Exception as error:  # whatever a checkpoint of other contents leads to
        reason = " ".join(str(error).split())[:300]  # torch lists every tensor on a line of its own
        what = "written" if form is write_weights else "exported"
        print(f"ERROR {arguments.checkpoint}: cannot be {what}: {reason or type(error).__name__}", file=sys.stderr)
    return 1


def write_weights(arguments: argparse.Namespace) -> str:
    """Write a checkpoint's network, plain and checked, in float32; return a line about it.

    Raises:
        CheckpointError: as `load_checkpoint`.
        ValueError: the merged network is not the same function, or not finite.
        RuntimeError: the tensors are not those of the network that the configuration describes.
        ConfigError, OSError: as `config_of_checkpoint` and `save_weights`.
    """
    import torch

    from utils.config import config_of_checkpoint
    from utils.training.checkpoint import load_checkpoint
    from utils.training.release import export, plain_network, trained_network
    from utils.training.state import TrainingState

    source, output = arguments.checkpoint, arguments.output
    checkpoint = load_checkpoint(source, TrainingState.ENTRIES)
    config = config_of_checkpoint(checkpoint["config"], source=str(source))
    network = trained_network(checkpoint, source).eval()
    plain = plain_network(checkpoint, source).eval()
    photo = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        actual, expected = plain(photo), network.double()(photo.double())
    difference = max((a - e).abs().max().item() for a, e in zip(actual, expected, strict=True))
    largest = max(e.abs().max().item() for e in expected)
    if not difference <= 1e-4 * max(largest, 1):
        raise ValueError(f"what is written and what was trained differ by {difference:.1e}, of up to {largest:.1e}")
    output.parent.mkdir(parents=True, exist_ok=True)
    export(output, checkpoint, plain, dtype=torch.float32)
    before, after = (sum(tensor.numel() for tensor in module.parameters()) for module in (network, plain))
    into = f" merged into {after:,}" if config.conv == "daconv" else ""
    return (
        f"{output}: {config.model}, {before:,} parameters{into}; "
        f"largest difference on random input {difference:.1e}, of outputs up to {largest:.2f}"
    )


def write_onnx_file(arguments: argparse.Namespace) -> str:
    """Write the correction as an ONNX file, checked and tried; return a line about it.

    Raises:
        ExportError, CheckpointError, WeightsError, ConfigError, OSError: as what it calls.
    """
    from utils.exports.onnx_file import OPSET, Curves, require_packages, write_onnx

    require_packages()
    corrector, facts = corrector_of(arguments.checkpoint)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    module = Curves(corrector) if arguments.curves else corrector
    report = write_onnx(arguments.output, module, facts, half=arguments.half)
    return (
        f"{arguments.output}: {facts['model']}, ONNX opset {OPSET}, {report.size / 1e6:.1f} MB; "
        f"largest difference from the network {report.difference:.1e}, of values up to 1"
    )


def write_page(arguments: argparse.Namespace) -> str:
    """Write the page with its network into a folder; return a line about it.

    Raises:
        ExportError, CheckpointError, WeightsError, ConfigError, OSError: as what it calls.
    """
    from utils.exports.onnx_file import require_packages
    from utils.exports.site import find_runtime, write_site

    require_packages()
    source = REPOSITORY / "page"
    find_runtime(source)
    corrector, facts = corrector_of(arguments.checkpoint)
    size = write_site(arguments.page, source, corrector, facts)
    return f"{arguments.page}: {facts['model']}, {size / 1e6:.1f} MB; python -m http.server -d {arguments.page}"


def corrector_of(path: Path) -> tuple["Corrector", dict[str, Any]]:
    """Return the corrector of a weights file or a checkpoint, merged, on the CPU, and what an export tells of it.

    Raises:
        CheckpointError, WeightsError, ConfigError, RuntimeError: the file cannot be used.
        OSError: there is no room for temporary files.
    """
    import torch

    from utils.files import sha256
    from utils.photos.predictor import Predictor
    from utils.training.checkpoint import load_checkpoint
    from utils.training.release import export
    from utils.training.state import TrainingState
    from utils.weights import load_weights

    with tempfile.TemporaryDirectory() as folder:
        weights = path
        if path.suffix != ".safetensors":
            weights = Path(folder) / "weights.safetensors"
            export(weights, load_checkpoint(path, TrainingState.ENTRIES), dtype=torch.float32)
        corrector = Predictor.from_weights(weights, "cpu").corrector
        model = getattr(load_weights(weights).architecture, "model", "msec")
    facts = {
        "model": model,
        "working_size": corrector.working_size,
        "least_size": corrector.least_size,
        "curves": "rational quadratic through (0, 0) and (1, 1) of a levelled photo, shared falls 0.3; "
        "logarithms of the slopes at 0 and 1, and of the gain that levels",
        "colours": "sRGB, [0, 1]",
        "weights": path.name,
        "weights_sha256": sha256(path),
        "licence": "MIT",
    }
    return corrector, facts


FORMS = {".safetensors": write_weights, ".onnx": write_onnx_file}
"""What writes each form, by the file's ending; it takes the arguments and returns a line about what it wrote."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        type=Path,
        default=WEIGHTS,
        help="checkpoint that train.py wrote, best.pt or last.pt, or weights (default: the released weights)",
    )
    add("-o", "--output", type=Path, help="file to write, NAME.safetensors or NAME.onnx")
    add("--page", type=Path, metavar="FOLDER", help="write the web page into a folder")
    add("--curves", action="store_true", help="ONNX of the curves alone: small copy in, curves out")
    add("--half", action="store_true", help="ONNX with its weights in 16 bits: half the size")
    add("--overwrite", action="store_true", help="replace the file, or the page's files, if they are there")
    arguments = parser.parse_args(argv)
    if (arguments.output is None) == (arguments.page is None):
        parser.error("say what to write: -o FILE, or --page FOLDER")
    if arguments.page:
        if arguments.curves or arguments.half:
            parser.error("--curves and --half are for NAME.onnx: the page has both")
        if arguments.page.exists() and not (arguments.page.is_dir() and arguments.overwrite):
            parser.error(f"--page {arguments.page}: is there already: give another name, or --overwrite")
        return arguments
    if arguments.output.suffix not in FORMS:
        parser.error(f"-o {arguments.output}: the name must end in {' or '.join(FORMS)}")
    if arguments.output.suffix == ".safetensors":
        if arguments.checkpoint.suffix == ".safetensors":
            parser.error(f"{arguments.checkpoint}: a weights file already: give the checkpoint, best.pt or last.pt")
        if arguments.curves or arguments.half:
            parser.error("--curves and --half are for NAME.onnx")
    if os.path.lexists(arguments.output) and not arguments.overwrite:
        parser.error(f"-o {arguments.output}: is there already: give another name, or --overwrite")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
