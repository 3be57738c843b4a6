from basicsr_ssl.archs.basicvsr_arch import PrunableBasicVSR
from basicsr_ssl.archs.bicubic_arch import BicubicUpsampler
from basicsr_ssl.archs.edsr_arch import PrunableEDSR
from basicsr_ssl.archs.spynet_arch import StandaloneSpyNet

__all__ = ['BicubicUpsampler', 'PrunableBasicVSR', 'PrunableEDSR', 'StandaloneSpyNet']
