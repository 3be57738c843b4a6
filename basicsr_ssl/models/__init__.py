from basicsr_ssl.models.distillation_model import DistillationModel
from basicsr_ssl.models.finetune_model import TemporalFinetuneModel
from basicsr_ssl.models.pruning_model import PruningModel
from basicsr_ssl.models.reconstruction_model import ReconstructionModel
from basicsr_ssl.models.sparsity_model import SparsityLearningModel

__all__ = ['DistillationModel', 'PruningModel', 'ReconstructionModel', 'SparsityLearningModel', 'TemporalFinetuneModel']
