"""The warm model: sampler, schedules, adapters, modulation, precision, memory."""

from worker.engine import fast_import

fast_import.load()
