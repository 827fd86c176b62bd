"""How jobs come in and answers go out: one folder per door, and what every door does once."""
