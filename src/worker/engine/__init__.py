"""The warm model: sampler, schedules, adapters, modulation, precision, memory."""
