"""This was the command that merges DAConv layers; export.py does it now."""

import shlex
import sys

if __name__ == "__main__":
    words = shlex.join(sys.argv[1:]) or "CHECKPOINT -o plain.safetensors"
    print(f"ERROR merge.py is part of export.py now: python export.py {words}", file=sys.stderr)
    sys.exit(2)
