"""Merge the DAConv layers of a trained checkpoint into plain convolutions and write the weights for predict.py.

examples:
  python merge.py runs/msec/best.pt -o merged.safetensors
  python predict.py FOLDER -o corrected -w merged.safetensors
"""

import argparse
import os
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 merged, 1 the checkpoint cannot be, 2 usage."""
    arguments = parse_arguments(argv)

    import torch

    from models import build_generator
    from train import TrainingState, export
    from utils.checkpoint import CheckpointError, load_checkpoint
    from utils.config import ConfigError, config_from_dict
    from utils.weights import load_weights

    try:
        checkpoint = load_checkpoint(arguments.checkpoint, TrainingState.ENTRIES)
        config = config_from_dict(checkpoint["config"], source=str(arguments.checkpoint))
        if config.conv == "plain":
            print(
                f"ERROR {arguments.checkpoint}: its convolutions are plain: there is nothing to merge", file=sys.stderr
            )
            return 1
        network = build_generator(config).eval()
        network.load_state_dict(checkpoint["generator"])
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        export(arguments.output, checkpoint, dtype=torch.float32)
        weights = load_weights(arguments.output)
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]  # torch lists every tensor on a line of its own
        print(f"ERROR {arguments.checkpoint}: its tensors are of another network ({reason})", file=sys.stderr)
        return 1
    merged = build_generator(weights.architecture).eval()
    merged.load_state_dict(weights.state)
    photo = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, actual = network(photo)[0], merged(photo)[0]
    difference, largest = (expected - actual).abs().max().item(), expected.abs().max().item()
    before, after = (sum(tensor.numel() for tensor in module.parameters()) for module in (network, merged))
    print(
        f"{arguments.output}: {config.model}, {before:,} parameters merged into {after:,}; "
        f"largest difference on random input {difference:.1e}, of outputs up to {largest:.2f}"
    )
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint that train.py wrote: best.pt or last.pt")
    parser.add_argument("-o", "--output", type=Path, required=True, help="weights file to write, NAME.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the weights file if it is there")
    arguments = parser.parse_args(argv)
    if arguments.checkpoint.suffix == ".safetensors":
        parser.error(
            f"{arguments.checkpoint}: a weights file is merged already: give the checkpoint, best.pt or last.pt"
        )
    if arguments.output.suffix != ".safetensors":
        parser.error(f"-o {arguments.output}: the name must end in .safetensors")
    if os.path.lexists(arguments.output) and not arguments.overwrite:
        parser.error(f"-o {arguments.output}: is there already: give another name, or --overwrite")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
