"""`python -m reference`."""

from reference.cli import main

raise SystemExit(main())
