"""Results: Pareto fronts, differences and claims, as objects and as files."""
