import torch
from eva.core import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, Trainer
from helpers import TINY
from torch.utils.data import Dataset

from g2l_plugin.demo.pretraining import SupervisedPretraining
from g2l_plugin.encoders.load import EncoderSource, load_encoder
from g2l_plugin.slides.views import AugmentedView

COLOURS = torch.tensor(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], dtype=torch.uint8
)


def tile(label):
    return COLOURS[label].view(3, 1, 1).expand(3, 32, 32)


class Colours(Dataset):
    """Tiles with one colour per class."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        label = index % 5
        return tile(label), torch.tensor(label), {}


def test_a_teacher_learns_the_labels_and_is_exported_unchanged(tmp_path):
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=str(tmp_path),
        max_steps=40,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    module = SupervisedPretraining(
        encoder=EncoderSource("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY),
        view=AugmentedView(32, flip_prob=0, color_jitter_prob=0, blur_prob=0),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    )
    loader = DataLoader(
        batch_size=20, num_workers=0, prefetch_factor=None, persistent_workers=False
    )
    data = DataModule(
        datasets=DatasetsSchema(train=Colours(), val=Colours()),
        dataloaders=DataloadersSchema(train=loader, val=loader),
    )
    trainer.fit(module, datamodule=data)
    images = torch.stack([tile(label) / 255 for label in range(5)])
    module.eval()
    with torch.no_grad():
        assert module(images).argmax(1).tolist() == list(range(5))
        (folder,) = tmp_path.rglob("teacher")
        exported = load_encoder(f"local-dir:{folder}").eval()
        assert torch.equal(exported(images), module.encoder(images))
    assert "40 steps" in (folder / "README.md").read_text()
