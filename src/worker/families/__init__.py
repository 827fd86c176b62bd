"""How each family of models makes what callers wish for."""
