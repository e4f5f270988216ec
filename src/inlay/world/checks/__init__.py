"""The acceptance of a world's models: what each phenomenon must reach, measured anew on held-out lines."""
