"""``python -m segfast`` is the ``segfast`` command."""

from segfast.cli import main

raise SystemExit(main())
