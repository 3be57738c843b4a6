from basicsr_ssl.losses.flow_loss import MultiScaleEndPointLoss
from basicsr_ssl.losses.laplacian_loss import MultiLaplacianLoss
from basicsr_ssl.losses.temporal_loss import TemporalStateLoss

__all__ = ['MultiLaplacianLoss', 'MultiScaleEndPointLoss', 'TemporalStateLoss']
