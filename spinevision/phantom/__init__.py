"""Generated endoscopic scenes with exact masks: demo, tests and example frames need no patient data."""

from spinevision.phantom.film import draw_sequence, write_phantoms
from spinevision.phantom.scene import NERVE, PHANTOM_CLASSES, PhantomPatient

__all__ = ["NERVE", "PHANTOM_CLASSES", "PhantomPatient", "draw_sequence", "write_phantoms"]
