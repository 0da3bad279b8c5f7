"""The callback in trainings by the Trainer of Hugging Face itself; configurations are random."""

import json

import pytest
import torch

from memtools.probe import Probe

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
callbacks = pytest.importorskip("memtools.integrations.transformers")

GENERATOR = torch.Generator().manual_seed(4)
LABELS = torch.arange(12) % 3
PIXELS = torch.randn(12, 3, 8, 8, generator=GENERATOR)
TOKENS = torch.randint(0, 20, (12, 5), generator=GENERATOR)


def image_classifier():
    # With BatchNorm, which is in train mode while it trains.
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def text_classifier():
    config = transformers.DistilBertConfig(
        vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8, num_labels=3
    )
    return transformers.DistilBertForSequenceClassification(config)


class Reporting(transformers.TrainerCallback):
    """In the place of a logger."""

    def __init__(self) -> None:
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append((state.global_step, {**(logs or {})}))


def trainer(model, folder, hooks=(), *, key="pixel_values", inputs=PIXELS, **options):
    data = [{key: x, "labels": y} for x, y in zip(inputs, LABELS, strict=True)]
    settings = {"num_train_epochs": 3, "save_strategy": "epoch", "logging_strategy": "epoch"}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{**settings, **options},
    )
    return transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(hooks))


def probe_lines(run):
    return [line for line in run.state.log_history if "probe/loss" in line]


def test_an_image_classifier_is_measured_after_each_epoch(tmp_path):
    weights = []
    for hooks in ([], [callbacks.ProbeCallback(Probe(PIXELS, LABELS, radius=0.1))]):
        torch.manual_seed(0)
        run = trainer(image_classifier(), tmp_path, hooks, save_strategy="no")
        run.train()
        weights.append(run.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    lines = probe_lines(run)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6), (3, 9)]
    assert all(0 <= line["probe/critical_sample_ratio"] <= 1 for line in lines)


def test_a_text_classifier_is_measured_at_its_embedding(tmp_path):
    model = text_classifier()
    probe = Probe(TOKENS, LABELS, embedding="distilbert.embeddings.word_embeddings", radius=0.01)
    hooks = [callbacks.ProbeCallback(probe)]
    run = trainer(model, tmp_path, hooks, key="input_ids", inputs=TOKENS, save_strategy="no")
    run.train()
    assert all(0 < line["probe/gini_of_running_mean"] < 1 for line in probe_lines(run))
    assert len(probe_lines(run)) == 3


def test_a_trainer_that_is_given_reaches_its_loggers_and_keeps_its_own_lines(tmp_path):
    seen = Reporting()
    run = trainer(image_classifier(), tmp_path, [seen], save_strategy="no")
    run.add_callback(callbacks.ProbeCallback(Probe(PIXELS, LABELS), run))
    run.train()
    assert [step for step, logs in seen.lines if "probe/loss" in logs] == [3, 6, 9]
    assert [step for step, logs in seen.lines if "loss" in logs] == [3, 6, 9]
    assert len(probe_lines(run)) == 3


@pytest.mark.parametrize(
    "saving",
    [
        {"save_strategy": "epoch"},
        {"save_strategy": "steps", "save_steps": 6},  # before the measurement of that epoch
        {"save_strategy": "steps", "save_steps": 4},
        {"save_strategy": "epoch", "restore_callback_states_from_checkpoint": True},
    ],
)
def test_a_resumed_training_goes_on_without_doubling(saving, tmp_path):
    probes = []
    for folder in ("whole", "resumed"):
        probe = Probe(PIXELS, LABELS)
        torch.manual_seed(0)
        run = trainer(
            image_classifier(), tmp_path / folder, [callbacks.ProbeCallback(probe)], **saving
        )
        checkpoint = None
        if folder == "resumed":
            step = saving.get("save_steps", 6)
            checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
            assert json.loads(
                (tmp_path / "whole" / f"checkpoint-{step}" / "trainer_state.json").read_text()
            )
        run.train(resume_from_checkpoint=checkpoint)
        assert [line["epoch"] for line in probe_lines(run)] == [1, 2, 3]
        probes.append(probe.state_dict())
    torch.testing.assert_close(*probes)


def test_the_probe_must_be_one():
    with pytest.raises(TypeError, match=r"probe must be a memtools\.Probe, got int"):
        callbacks.ProbeCallback(3)
