"""Qwen-Image 1.x: text-to-image and instruction edits with references, one or several."""
