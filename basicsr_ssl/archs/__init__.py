from basicsr_ssl.archs.basicvsr_arch import PrunableBasicVSR
from basicsr_ssl.archs.bicubic_arch import BicubicUpsampler

__all__ = ['BicubicUpsampler', 'PrunableBasicVSR']
