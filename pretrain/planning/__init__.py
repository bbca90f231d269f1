"""Choosing a parallel layout before anything is started: what each device would hold, compute and send."""
