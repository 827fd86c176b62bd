"""A small SNAC and a small Llama of random weights, made once."""
