"""The controlled comparison of layer kinds.

What is trained (`plan.py`), how (`cells.py`), and what is written of it (`report.py`).
"""
