"""Stand-ins of the tools that a student is exported for, and each tool's own way to an embedding.

This runs in a process of its own, where this package cannot be imported:

    python other_tools.py IMAGE.png FOLDER_OF_EMBEDDINGS TOOL=STUDENT_FILE ...

A stand-in has the signatures of the real thing, whose source is named beside it; with REAL=1 the
installed tool is used instead.
"""

import dataclasses
import importlib.util
import os
import sys
import traceback
import types
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.modules["g2l_plugin"] = None  # importing it fails

REAL = os.environ.get("REAL") == "1"


def stand_in(name, **members):
    """Puts a module and its packages where `import` finds them, or leaves the real ones."""
    if REAL:
        return
    for end in [i for i, c in enumerate(name) if c == "."] + [len(name)]:
        sys.modules.setdefault(name[:end], types.ModuleType(name[:end])).__path__ = []
    vars(sys.modules[name]).update(members)


def load(file):
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lazyslide(file, image):
    # github.com/rendeirolab/LazySlide 0.13.0, lazyslide/tools/_features.py: an ImageModelProtocol
    # (lazyslide_models/base.py) gives its own transform, and is called by encode_image.
    model = load(file).Student()
    if REAL:
        from lazyslide_models import ImageModelProtocol

        assert isinstance(model, ImageModelProtocol)
    assert model.name and callable(model.try_compile)
    model.to("cpu")
    tile = model.get_transform()(np.array(image))  # its tiles are arrays
    return model.encode_image(torch.stack([tile]))


def trident(file, image):
    # github.com/mahmoodlab/TRIDENT, trident/patch_encoder_models/load.py.
    class CustomInferenceEncoder(torch.nn.Module):
        def __init__(self, enc_name, model, transforms, precision):
            super().__init__()
            self.enc_name, self.model = enc_name, model
            self.eval_transforms, self.precision = transforms, precision

        def forward(self, x):
            return self.model(x)

    stand_in("trident.patch_encoder_models", CustomInferenceEncoder=CustomInferenceEncoder)
    encoder = load(file).make_encoder()
    assert encoder.precision == torch.float32 and encoder.enc_name
    return encoder(torch.stack([encoder.eval_transforms(image)]).to(encoder.precision))


def stamp(file, image):
    # github.com/KatherLab/STAMP, src/stamp/preprocessing/extractor/__init__.py.
    @dataclasses.dataclass(frozen=True)
    class Extractor:
        _: dataclasses.KW_ONLY
        model: torch.nn.Module
        transform: object
        identifier: str

    stand_in("stamp.preprocessing.extractor", Extractor=Extractor)
    module = load(file)
    # Of `extract_`, without which its own 256 um are taken.
    assert module.TILES["tile_size_um"] == module.TILES["tile_size_px"] * module.MPP
    extractor = module.make_extractor()
    assert isinstance(extractor.identifier, str)
    return extractor.model.eval()(torch.stack([extractor.transform(image)]))


def hest(file, image):
    # github.com/mahmoodlab/HEST, src/hest/bench/benchmark.py: settings are fields of
    # BenchmarkConfig.
    found = []

    def benchmark(encoder, enc_transf, precision, cli_args=None, **kwargs):
        known = {"dimreduce", "latent_dim", "config", "datasets", "batch_size", "num_workers"}
        assert kwargs.keys() <= known and kwargs["dimreduce"] == "PCA"
        embeddings = encoder(torch.stack([enc_transf(image)]).float())
        assert kwargs["latent_dim"] <= embeddings.shape[1]
        found.append(embeddings)

    stand_in("hest.bench", benchmark=benchmark)
    load(file).run_benchmark(datasets=["IDC"])
    return found[0]


def thunder(file, image):
    # github.com/MICS-Lab/thunder 0.2.2, thunder/models/pretrained_models.py and utils.py.
    class PretrainedModel(torch.nn.Module, ABC):
        @abstractmethod
        def get_transform(self): ...

        @abstractmethod
        def get_linear_probing_embeddings(self, x): ...

        @abstractmethod
        def get_segmentation_embeddings(self, x): ...

    stand_in("thunder.models.pretrained_models", PretrainedModel=PretrainedModel)
    module = load(file)
    base = sys.modules["thunder.models.pretrained_models"].PretrainedModel
    (found,) = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, base) and c is not base
    ]
    model = found()
    images = torch.stack([model.get_transform()(image)])
    assert model.name and model.get_segmentation_embeddings(images).shape[2] == model.emb_dim
    return model.get_linear_probing_embeddings(images)


def slideflow(file, image):
    # github.com/slideflow/slideflow 3.0.2, slideflow/model/extractors: _factory_torch.py and
    # _registry.py.
    class TorchFeatureExtractor:
        def __init__(self, channels_last=False, mixed_precision=True, **transform_kwargs):
            assert not transform_kwargs
            self.device = torch.device("cpu")
            self.mixed_precision = mixed_precision

        def _dump_config(self, class_name, **kwargs):
            return {"class": class_name, "kwargs": kwargs}

        def __call__(self, images):
            assert images.dtype == torch.uint8
            with torch.autocast("cpu", enabled=self.mixed_precision), torch.inference_mode():
                return self.model(self.transform(images.permute(0, 3, 1, 2))).float()

    registry = {}

    def register_torch(key_name):
        return lambda built: registry.setdefault(key_name, built)

    stand_in("slideflow.model.extractors", register_torch=register_torch)
    stand_in(
        "slideflow.model.extractors._factory_torch", TorchFeatureExtractor=TorchFeatureExtractor
    )
    module = load(file)
    extractor = module.Student() if REAL else registry[module.NAME]()
    assert extractor.num_features == module.WIDTH
    assert extractor.dump_config()["class"] == "slideflow_student.Student"
    return extractor(torch.from_numpy(np.array(image))[None])


def tiatoolbox(file, image):
    # github.com/TissueImageAnalytics/tiatoolbox 2.1.3, tiatoolbox/models/models_abc.py; the engine
    # gives the dataset `preproc_func`, and the batches to `infer_batch`.
    class ModelABC(ABC, torch.nn.Module):
        def __init__(self):
            super().__init__()
            self._preproc = self.preproc

        @abstractmethod
        def forward(self, *args, **kwargs): ...

        @staticmethod
        @abstractmethod
        def infer_batch(model, batch_data, *, device): ...

        @staticmethod
        def preproc(image):
            return image

        @property
        def preproc_func(self):
            return self._preproc

    stand_in("tiatoolbox.models.models_abc", ModelABC=ModelABC)
    module = load(file)
    model = module.Student()
    batch = torch.utils.data.default_collate([model.preproc_func(np.array(image))])
    (features,) = model.infer_batch(model, batch, device="cpu")
    assert features.shape == (1, module.WIDTH)
    return torch.from_numpy(features)


def atlaspatch(file, image):
    # github.com/AtlasAnalyticsLab/AtlasPatch 1.1.0, atlas_patch/models/patch/custom.py and base.py.
    @dataclasses.dataclass
    class CustomEncoderComponents:
        model: torch.nn.Module
        preprocess: object
        forward_fn: object = None

    def register_custom_encoder(
        *, registry, name, embedding_dim, loader, device, dtype, num_workers=0, non_blocking=False
    ):
        registry[name] = lambda: (loader(device, dtype), embedding_dim)

    if REAL:
        from atlas_patch.models.patch.custom import register_feature_extractors_from_module
        from atlas_patch.models.patch.registry import PatchFeatureExtractorRegistry

        registry = PatchFeatureExtractorRegistry()
        device = torch.device("cpu")
        register_feature_extractors_from_module(file, registry, device=device, dtype=torch.float32)
        extractor = registry.create(load(file).NAME)
        return torch.from_numpy(extractor.extract_batch([np.array(image)]))
    stand_in(
        "atlas_patch.models.patch.custom",
        CustomEncoderComponents=CustomEncoderComponents,
        register_custom_encoder=register_custom_encoder,
    )
    registry, module = {}, load(file)
    module.register_feature_extractors(registry, torch.device("cpu"), torch.float32, 0)
    components, width = registry[module.NAME]()
    embedding = components.model(torch.stack([components.preprocess(image)]))
    assert embedding.shape[1] == width
    return embedding


if __name__ == "__main__":
    image, output, *files = sys.argv[1:]
    for tool, file in (argument.split("=") for argument in files):
        try:
            with torch.no_grad():
                embedding = globals()[tool](file, Image.open(image).convert("RGB"))
        except Exception:
            (Path(output) / f"{tool}.txt").write_text(traceback.format_exc())
        else:
            np.save(Path(output) / f"{tool}.npy", embedding.numpy())
