"""`python -m jitlisten`."""

from . import main

raise SystemExit(main())
