from basicsr_ssl.methods.aware import Aware
from basicsr_ssl.methods.method import METHOD_REGISTRY, Method
from basicsr_ssl.methods.ssl import SSL

__all__ = ['METHOD_REGISTRY', 'SSL', 'Aware', 'Method']
