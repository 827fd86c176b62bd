"""One job from input to reply."""
