"""python -m blockshock.bench"""

import sys

from blockshock.bench.run import main

if __name__ == "__main__":
    sys.exit(main())
