from basicsr_ssl.models.compression_model import CompressionModel
from basicsr_ssl.models.distillation_model import DistillationModel
from basicsr_ssl.models.finetune_model import TemporalFinetuneModel
from basicsr_ssl.models.pruning_model import PruningModel
from basicsr_ssl.models.reconstruction_model import ReconstructionModel
from basicsr_ssl.models.sparsity_model import SparsityLearningModel

__all__ = ['CompressionModel', 'DistillationModel', 'PruningModel', 'ReconstructionModel', 'SparsityLearningModel',
           'TemporalFinetuneModel']
