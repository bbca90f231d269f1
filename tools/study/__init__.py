"""Controlled comparison of layer kinds (study).

What is trained (`plan.py`), how (`cells.py`), and what is written of it (`report.py`).
"""
