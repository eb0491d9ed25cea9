"""shiftscope: see, explain and act on distribution shift in token models.

Three verbs: `shiftscope.compare`, `shiftscope.adapt`, `shiftscope.generate`; each is a package with one file per method.
"""

__version__ = "0.1.0"
