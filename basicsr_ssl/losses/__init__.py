from basicsr_ssl.losses.flow_loss import MultiScaleEndPointLoss
from basicsr_ssl.losses.temporal_loss import TemporalStateLoss

__all__ = ['MultiScaleEndPointLoss', 'TemporalStateLoss']
