"""Download pretrained networks: BasicSR's script, over `basicsr-ssl download`.

python scripts/download_pretrained_models.py BasicVSR     # a method: BasicVSR, flownet
python scripts/download_pretrained_models.py all
"""

import argparse
import sys

from basicsr_ssl import cli

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('method', help="a method (BasicVSR, flownet), an entry of options/zoo.yml, or all")
    sys.exit(cli.main(['download', parser.parse_args().method]))
