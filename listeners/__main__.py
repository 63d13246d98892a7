"""`python -m listeners`: the command, as `jitlisten`."""

from jitlisten import main

raise SystemExit(main())
