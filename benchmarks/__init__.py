"""Every number the documentation states, one command each: `scripts/bench NAME`."""
