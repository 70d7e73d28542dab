"""idealmix: how much of each domain belongs in a supervised fine-tuning mixture, measured, with error bars."""

__version__ = "0.1.0"
