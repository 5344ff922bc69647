"""Find the tissue in one frame: write its mask and an overlay.

python examples/predict_frame.py MODEL IMAGE OUTPUT     MODEL is a model folder or a Hub id, OUTPUT a folder
"""

import sys
from pathlib import Path

from spinevision import SpineSegmenter


def main(model_id: str, image: str, output: str) -> None:
    """Load once, predict, write."""
    model = SpineSegmenter.from_pretrained(model_id)
    prediction = model.predict(image)

    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    prediction.save(folder / "mask.png")  # one number a pixel: 0 is background, 1 the first class
    prediction.overlay().save(folder / "overlay.png")  # for people
    for name, share in prediction.area_fraction.items():
        print(f"{name}: {share:.1%} of the field of view")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
