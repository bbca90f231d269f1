"""Gradient conflict between text and image tokens, weight matrix by weight matrix (arXiv 2509.24365, section 3).

    c = -(cos(g_text, g_image) - cos(g_half1, g_half2))

g_text and g_image are gradients of the losses of text and of picture codes; the halves are two disjoint sets of mixed
targets, half of each kind. Every one of the four is a sum over equally many target tokens, so that all have the same
noise. `blocks.py` says which targets, `gradients.py` takes the gradients, `estimates.py` makes conflicts and intervals
of them.
"""
