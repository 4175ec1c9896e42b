"""A LightningModule around a transformers model, captured by a callback.

    python analyses/examples/lightning_module.py --model MODEL_FOLDER --output runs/seed-1

Needs Lightning: ``pip install dynprobe[lightning]``.
"""

import argparse
from typing import Any

import torch
import transformers
from lightning.pytorch import LightningModule, Trainer, seed_everything

import dynprobe
from dynprobe.tasks import encode


class Classifier(LightningModule):
    """A sequence classifier; whatever else the module held, capture would find the transformers model in it.

    Parameters
    ----------
    model
        The transformers model.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a batch."""
        loss = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Accuracy on a batch."""
        right = self.model(**batch).logits.argmax(dim=-1) == batch["labels"]
        self.log("accuracy", right.float().mean(), batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as for most fine-tuning."""
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


def main() -> None:
    """Fine-tune a classifier on a shipped task, and take snapshots of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of a pretrained model with its tokenizer")
    parser.add_argument("--output", required=True, help="new run directory")
    parser.add_argument("--task", default="wic")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    seed_everything(asked.seed)
    task = dynprobe.load_task(asked.task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(asked.model, num_labels=task.n_classes)
    options: dict[str, Any] = {
        "batch_size": asked.batch_size,
        "collate_fn": transformers.DataCollatorWithPadding(tokenizer),
    }
    train, validation = task["train"], task["validation"]
    capture = dynprobe.LightningCallback(
        asked.output,
        # The same texts for every run that will be compared with this one.
        probe_set=dynprobe.ProbeSet.from_texts(validation.texts, tokenizer, labels=validation.labels),
        facts={"seed": asked.seed, "task": asked.task},
    )
    trainer = Trainer(max_steps=asked.steps, callbacks=[capture], logger=False, enable_checkpointing=False)
    trainer.fit(
        Classifier(model),
        torch.utils.data.DataLoader(encode(train, tokenizer), shuffle=True, **options),
        torch.utils.data.DataLoader(encode(validation, tokenizer), **options),
    )


if __name__ == "__main__":
    main()
