from basicsr_ssl.losses.temporal_loss import TemporalStateLoss

__all__ = ['TemporalStateLoss']
