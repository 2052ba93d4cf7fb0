"""How to walk from noise to a sample: the loop, and what may be put around the network on the way.

Schedulers live in modules of their own, e.g. `gendiff.samplers.inversion`, whose paths saved pipelines record.
"""

from gendiff.samplers.guidance import guided, guided_jointly, interval, ramp
from gendiff.samplers.loop import Predictor, State, Step, sample

__all__ = ["Predictor", "State", "Step", "guided", "guided_jointly", "interval", "ramp", "sample"]
