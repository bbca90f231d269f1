"""Planner of parallel layouts: memory, compute and communication per device, before anything is started."""
