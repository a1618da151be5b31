"""Functions on arrays: attention, masks, layouts, caches, cross entropy; no model."""

from lwm import renamed

__getattr__ = renamed.look_up(__name__)
