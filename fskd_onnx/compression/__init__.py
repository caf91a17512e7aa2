"""A student from a teacher alone: costs, errors, choices, plan."""
