from basicsr_ssl.methods.assl import ASSL
from basicsr_ssl.methods.aware import Aware
from basicsr_ssl.methods.method import METHOD_REGISTRY, Method
from basicsr_ssl.methods.srp import SRP
from basicsr_ssl.methods.ssl import SSL

__all__ = ['ASSL', 'METHOD_REGISTRY', 'SRP', 'SSL', 'Aware', 'Method']
