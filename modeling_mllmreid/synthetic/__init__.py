"""Rendered pedestrians and worlds: person crops, cameras and captions without a download."""
