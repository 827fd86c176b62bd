"""Tools for the warm model of any family: sampler, schedule, adapters, precision, memory."""

from worker.engine import fast_import

fast_import.load()
