"""The flags of each command: `help` and `add_arguments(parser)`; torch-free, as a typo should cost no seconds."""
