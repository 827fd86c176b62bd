"""Where published weights come from, and how every byte of them is verified."""
