"""Orpheus: a Llama that writes the codes of SNAC, which its decoder makes audible."""
