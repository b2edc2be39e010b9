"""A small pre-trained ModernBERT, for trying things out: its weights, tokenizer, card and log lie beside this file."""

from pathlib import Path

FOLDER = Path(__file__).parent
