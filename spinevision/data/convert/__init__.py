"""Between annotation tools and the dataset folder, both ways: one file a format."""

from __future__ import annotations

FORMATS = {
    "coco": "JSON with polygons or run lengths",
    "yolo": "a text file of polygons a frame",
    "color-png": "a coloured mask a frame, as CVAT's Segmentation mask 1.1",
    "label-studio": "JSON with brushes or polygons",
    "cvat": "XML of CVAT for images 1.1",
}
"""The formats, as the command line names them, and what they are."""
