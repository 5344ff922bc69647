"""Go on training a model with your own frames, in plain Lightning.

python examples/fine_tune.py MODEL DATA OUTPUT [EPOCHS]     MODEL is a model folder or a Hub id, DATA a dataset folder
"""

import sys

from lightning import Trainer

from spinevision import SpineDataModule, SpineSegmenter, TrainingSettings


def main(model_id: str, root: str, output: str, epochs: str = "20") -> None:
    """Train on, keep the best weights, score them on the test part, save them."""
    data = SpineDataModule(root=root)
    # Classes come from the dataset's classes.json; where they are others than the model's, its last layer starts anew.
    model = SpineSegmenter.from_pretrained(model_id, labels=data.labels)
    model.settings = TrainingSettings(learning_rate=3e-4)

    trainer = Trainer(max_epochs=int(epochs), gradient_clip_val=1.0)
    trainer.fit(model, data)

    best = SpineSegmenter.from_checkpoint(trainer.checkpoint_callback.best_model_path)
    trainer.test(best, data)
    best.save_pretrained(output)
    print(f"saved {output}; load it with SpineSegmenter.from_pretrained({output!r})")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
