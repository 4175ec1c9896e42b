"""dynprobe: see what fine-tuning does to a transformer."""

__version__ = "0.1.0"
