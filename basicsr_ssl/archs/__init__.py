from basicsr_ssl.archs.basicvsr_arch import PrunableBasicVSR
from basicsr_ssl.archs.bicubic_arch import BicubicUpsampler
from basicsr_ssl.archs.edsr_arch import PrunableEDSR
from basicsr_ssl.archs.spynet_arch import StandaloneSpyNet
from basicsr_ssl.archs.swinir_arch import PrunableSwinIR

__all__ = ['BicubicUpsampler', 'PrunableBasicVSR', 'PrunableEDSR', 'PrunableSwinIR', 'StandaloneSpyNet']
