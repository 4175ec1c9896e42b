"""A training loop with Accelerate, captured by a Recorder.

    python analyses/examples/accelerate_loop.py --model MODEL_FOLDER --output runs/seed-1
    torchrun --nproc-per-node 2 analyses/examples/accelerate_loop.py --model MODEL_FOLDER --output runs/seed-1

Every process makes the Recorder and calls it at the same steps; only the first one writes.
"""

import argparse

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

import dynprobe
from dynprobe.tasks import encode


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

    set_seed(asked.seed)
    accelerator = Accelerator()
    task = dynprobe.load_task(asked.task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(asked.model, num_labels=task.n_classes)
    loader = torch.utils.data.DataLoader(
        encode(task["train"], tokenizer),
        batch_size=asked.batch_size,
        shuffle=True,
        collate_fn=transformers.DataCollatorWithPadding(tokenizer),
    )
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=2e-5), loader)
    # The same texts for every run that will be compared with this one.
    validation = task["validation"]
    probe_set = dynprobe.ProbeSet.from_texts(validation.texts, tokenizer, labels=validation.labels)

    recorder = dynprobe.Recorder(
        accelerator.unwrap_model(model),
        probe_set,
        asked.output,
        max_steps=asked.steps,
        facts={"seed": asked.seed, "task": asked.task, "num_processes": accelerator.num_processes},
    )
    scheduled = recorder.plan.steps  # log-spaced, with the first and the last
    step = 0
    with recorder:
        recorder.snapshot(step)
        model.train()
        while step < asked.steps:
            for batch in loader:
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step in scheduled:
                    recorder.snapshot(step)
                    recorder.log({"step": step, "loss": loss.item()})
                if step == asked.steps:
                    break
    accelerator.end_training()


if __name__ == "__main__":
    main()
