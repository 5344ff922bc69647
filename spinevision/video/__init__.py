"""The one reader and writer of video: files, cameras and streams in, overlays and masks out."""

from spinevision.video.frames import VIDEO_SUFFIXES, BrokenVideoError, VideoError, VideoFrame, frames_of, is_video
from spinevision.video.live import LiveReader, is_address
from spinevision.video.masks import read_mask_video
from spinevision.video.reader import VideoInfo, VideoReader
from spinevision.video.writer import MaskVideoWriter, VideoWriter

__all__ = [
    "VIDEO_SUFFIXES",
    "BrokenVideoError",
    "LiveReader",
    "MaskVideoWriter",
    "VideoError",
    "VideoFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "frames_of",
    "is_address",
    "is_video",
    "read_mask_video",
]
