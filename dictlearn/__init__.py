"""dictlearn: transformer factors by dictionary learning."""
