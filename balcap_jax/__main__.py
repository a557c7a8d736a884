"""`python -m balcap_jax` is `balcap`."""

import sys

from balcap_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
