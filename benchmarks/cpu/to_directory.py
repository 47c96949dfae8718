"""Writes a GGUF model as a Hugging Face directory in bfloat16: python to_directory.py MODEL.gguf FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(gguf: Path, target: Path) -> None:
    source = {"gguf_file": gguf.name}
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.bfloat16, quantization_config=plain, **source
    )
    AutoTokenizer.from_pretrained(str(gguf.parent), **source).save_pretrained(target)
    model.save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
