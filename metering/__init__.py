"""Rates, budgets, replay and leases: atomic Redis scripts and thin classes over them. The only home of Lua."""
