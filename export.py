"""Give a trained network in another form. What form it is, the ending of the file to write says.

  .safetensors    DAConv layers merged into plain convolutions, checked, in full precision: weights for predict.py

examples:
  python export.py runs/msec/best.pt -o plain.safetensors
  python predict.py FOLDER -o corrected -w plain.safetensors
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 written, 1 the checkpoint cannot be used, 2 usage."""
    arguments = parse_arguments(argv)

    from utils.config import ConfigError
    from utils.training.checkpoint import CheckpointError, load_checkpoint
    from utils.training.state import TrainingState

    try:
        checkpoint = load_checkpoint(arguments.checkpoint, TrainingState.ENTRIES)
        print(FORMS[arguments.output.suffix](arguments.checkpoint, checkpoint, arguments.output))
        return 0
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
    except Exception as error:  # whatever a checkpoint of other contents leads to
        reason = " ".join(str(error).split())[:300]  # torch lists every tensor on a line of its own
        print(f"ERROR {arguments.checkpoint}: cannot be merged: {reason or type(error).__name__}", file=sys.stderr)
    return 1


def write_merged(source: Path, checkpoint: dict[str, Any], output: Path) -> str:
    """Write a checkpoint's network, merged and checked, in float32; return a line about it.

    Raises:
        ValueError: there is nothing to merge, or the merged network is not the same function.
        RuntimeError: the tensors are not those of the network that the configuration describes.
        ConfigError, OSError: as `config_of_checkpoint` and `save_weights`.
    """
    import torch

    from models.daconv import merge_daconv
    from utils.config import config_of_checkpoint
    from utils.training.release import export, trained_network

    config = config_of_checkpoint(checkpoint["config"], source=str(source))
    if config.conv == "plain":
        raise ValueError("its convolutions are plain: there is nothing to merge")
    network = trained_network(checkpoint, source).eval()
    merged = merge_daconv(network)
    photo = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        actual, expected = merged(photo), network.double()(photo.double())
    difference = max((a - e).abs().max().item() for a, e in zip(actual, expected, strict=True))
    largest = max(e.abs().max().item() for e in expected)
    if not difference <= 1e-4 * max(largest, 1):
        raise ValueError(f"merged and unmerged outputs differ by {difference:.1e}, of up to {largest:.1e}")
    output.parent.mkdir(parents=True, exist_ok=True)
    export(output, checkpoint, merged, dtype=torch.float32)
    before, after = (sum(tensor.numel() for tensor in module.parameters()) for module in (network, merged))
    return (
        f"{output}: {config.model}, {before:,} parameters merged into {after:,}; "
        f"largest difference on random input {difference:.1e}, of outputs up to {largest:.2f}"
    )


FORMS = {".safetensors": write_merged}
"""What writes each form, by the file's ending; it takes the checkpoint's path, the checkpoint and the path to write."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint that train.py wrote: best.pt or last.pt")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, NAME.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    arguments = parser.parse_args(argv)
    if arguments.checkpoint.suffix == ".safetensors":
        parser.error(
            f"{arguments.checkpoint}: a weights file is merged already: give the checkpoint, best.pt or last.pt"
        )
    if arguments.output.suffix not in FORMS:
        parser.error(f"-o {arguments.output}: the name must end in {' or '.join(FORMS)}")
    if os.path.lexists(arguments.output) and not arguments.overwrite:
        parser.error(f"-o {arguments.output}: is there already: give another name, or --overwrite")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
