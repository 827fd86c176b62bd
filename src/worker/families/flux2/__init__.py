"""FLUX.2 of Black Forest Labs: klein, its base and dev, with text, edits and several references."""
