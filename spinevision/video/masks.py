"""Masks out of a lossless video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from spinevision.video.frames import VideoError, open_file, reason


def read_mask_video(path: str | Path) -> Iterator[np.ndarray]:
    """The masks of a video that :class:`~spinevision.video.MaskVideoWriter` wrote, uint8 (H, W) label ids, in order.

    Raises:
        VideoError: not such a file, or damaged.
    """
    try:
        with open_file(Path(path)) as container:
            if not container.streams.video or container.streams.video[0].codec_context.name != "ffv1":
                raise VideoError(f"{path} is no lossless video of masks; give the masks.mkv that was written")
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise VideoError(f"{path} is damaged; write it again")
                yield frame.to_ndarray(format="gray")
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be read whole ({reason(error)}); write it again") from error
