"""The engine: continuous batching over a paged cache, in token ids only."""

from tuili.engine.client import EngineClient, InProcess
from tuili.engine.engine import Engine, EngineStats
from tuili.engine.loop import EngineLoop

__all__ = ["Engine", "EngineClient", "EngineLoop", "EngineStats", "InProcess"]
