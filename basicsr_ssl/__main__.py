import sys

from basicsr_ssl.cli import main

if __name__ == '__main__':  # worker processes of the data loader import this module again
    sys.exit(main())
