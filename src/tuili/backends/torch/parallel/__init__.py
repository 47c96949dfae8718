"""One model in several processes, each with a device of its own. See docs/torch.md."""

from tuili.backends.torch.parallel.backend import ParallelBackend, load_group

__all__ = ["ParallelBackend", "load_group"]
