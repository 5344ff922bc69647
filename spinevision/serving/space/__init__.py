"""A page on which anybody can try a model (Gradio, the extra ``demo``): run here, or pushed to the Hub as a Space."""

from spinevision.serving.space.push import check_space, push_space
from spinevision.serving.space.serve import show_space

__all__ = ["check_space", "push_space", "show_space"]
