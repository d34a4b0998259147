# The public names, grouped as a pathologist works: lazy_loader imports each from here on first use.

# Choose, index and read slides.
from .slides.cohort import choose_cohort as choose_cohort
from .slides.indexing import build_index as build_index
from .slides.tile_grid import TileGrid as TileGrid
from .slides.dataset import TileDataset as TileDataset
from .slides.data_module import TileDataModule as TileDataModule
from .slides.loader import TileLoader as TileLoader
from .slides.views import AugmentedView as AugmentedView

# Load an encoder.
from .encoders.load import load_encoder as load_encoder
from .encoders.load import EncoderSource as EncoderSource
from .encoders.encoder import Encoder as Encoder

# Distil.
from .distil import distil as distil
from .distillation.module import DistillationModule as DistillationModule
from .distillation.running.trainer import KDTrainer as KDTrainer
from .distillation.schedule import CosineSchedule as CosineSchedule
from .distillation.schedule import LossEarlyStopping as LossEarlyStopping
from .distillation.losses import DistillationLoss as DistillationLoss
from .distillation.losses import LogSumLoss as LogSumLoss
from .distillation.losses import MeanSquaredErrorLoss as MeanSquaredErrorLoss
from .distillation.losses import CosineLoss as CosineLoss
from .distillation.losses import SmoothL1Loss as SmoothL1Loss
from .distillation.beyond.similarity import SimilarityKLLoss as SimilarityKLLoss
from .distillation.running.run_checkpoint import RunCheckpoint as RunCheckpoint
from .distillation.running.loss_guard import LossGuard as LossGuard
from .distillation.running.data_wait import DataWait as DataWait
from .distillation.running.progress import DistillationProgressBar as DistillationProgressBar

# Publish.
from .publishing.publish import publish_run as publish_run
from .publishing.callback import PublishStudent as PublishStudent
from .encoders.folder import export_student as export_student

# Embed whole slides.
from .embedding.embed_slides import embed_slides as embed_slides

# Evaluate.
from .evaluation.embed import embed_tiles as embed_tiles
from .evaluation.writer import EmbeddingsWriter as EmbeddingsWriter
from .evaluation.segmentation import SegmentationEmbeddingsWriter as SegmentationEmbeddingsWriter
from .evaluation.embedding_files import EmbeddingsInMemory as EmbeddingsInMemory
from .evaluation.expression_embeddings import ExpressionEmbeddings as ExpressionEmbeddings
from .evaluation.embedding_metrics import EmbeddingMetrics as EmbeddingMetrics
from .evaluation.before_after import DistillationEvaluation as DistillationEvaluation
from .metrics.embeddings import Embeddings as Embeddings
from .metrics.knn import KNNVoting as KNNVoting
from .metrics.few_shot import FewShot as FewShot
from .metrics.probe import LogisticProbe as LogisticProbe
from .evaluation.embedding_metrics import CKA as CKA
from .metrics.robustness import RobustnessIndex as RobustnessIndex
from .metrics.pathorob_index import PublishedPathoROBIndex as PublishedPathoROBIndex
from .metrics.performance_drop import AveragePerformanceDrop as AveragePerformanceDrop
from .metrics.clustering_score import ClusteringScore as ClusteringScore
from .metrics.croma import CRoMa as CRoMa
from .metrics.plism import MatchedRobustness as MatchedRobustness
from .metrics.gene_expression import GeneExpression as GeneExpression
from .metrics.gene_expression import MeanPearson as MeanPearson
from .metrics.knn import knn_accuracy as knn_accuracy
from .metrics.cka import linear_cka as linear_cka
from .datasets.manifest import ManifestTiles as ManifestTiles
from .datasets.breakhis import BreaKHis as BreaKHis

# Report.
from .report.report import write_report as write_report

# The generated cohort.
from .demo.dataset import DemoTiles as DemoTiles
from .demo.pretraining import SupervisedPretraining as SupervisedPretraining

# The error that a user can cause and mend.
from .errors import UserError as UserError

__version__: str
