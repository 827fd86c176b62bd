"""Callers' and the operator's own LoRAs: what they are called, where they are, and their files."""
