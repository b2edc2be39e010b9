"""Pre-training and fine-tuning on packed tokens, inside transformers' Trainer. Needs the extra `train`."""
