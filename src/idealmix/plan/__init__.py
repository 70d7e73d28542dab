"""What a run will need, before it starts: tokens, time, memory and disk of every phase, and settings that make it fit.

A configuration and its data -> `work.Work` (rows, tokens, batches) -> `phases.Plan` (phases on a `machine.Machine`). Reads
the model's config, never its weights.
"""
